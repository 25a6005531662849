"""LH310 to LH321: what vLLM and llama.cpp make of the adapter.

https://github.com/vllm-project/vllm, vllm/lora/peft_helper.py and vllm/config/lora.py; and llama.cpp's
convert_lora_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.rules.numbers import some
from lora_hub.checking.subject import Subject
from lora_hub.checkpoint.token_layers import is_embedding, is_output
from lora_hub.documents.adapter_config import scaling
from lora_hub.documents.manifest import CONFIG_NAME, WEIGHTS_NAME

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what `max_lora_rank` may be
VLLM_DEFAULT_RANK = 16
_SAME_EVERYWHERE = "`lora-hub compose REF=1 --rank fit:vllm` writes the same deltas with one rank and one alpha"


def _vocabulary(subject: Subject) -> list[str]:
    return [path for path in (*subject.paths, *subject.heads) if is_embedding(path) or is_output(path)]


@finds("LH310", "vllm-rank", severity=Severity.NOTE)
def vllm_rank(subject: Subject) -> Iterator[Hit]:
    """VLLM must be started with a larger `--max-lora-rank` than its default of 16, or cannot hold the rank at all.

    It is one of 1, 8, 16, 32, 64, 128, 256, 320 and 512; memory is taken for that rank in every slot. Above 512 vLLM
    does not load the adapter (a warning).

    ## Example

        the largest rank is 48: start vLLM with --max-lora-rank 64

    ## How to mend it

    Start it so, or write the adapter at a smaller rank: `lora-hub compose REF=1 --rank max:16`.
    """
    largest = max((module.r for module in subject.modules), default=0)
    if largest <= VLLM_DEFAULT_RANK:
        return
    fitting = next((rank for rank in VLLM_RANKS if rank >= largest), None)
    yield Hit(
        message=f"the largest rank is {largest}: "
        + (f"start vLLM with --max-lora-rank {fitting}" if fitting else "vLLM loads at most 512"),
        hint=f"or write it at a smaller rank: `lora-hub compose REF=1 --rank max:{VLLM_DEFAULT_RANK}`",
        file=CONFIG_NAME,
        place="r",
        severity=Severity.NOTE if fitting else Severity.WARNING,
    )


@finds("LH311", "vllm-refuses-heads", severity=Severity.NOTE)
def vllm_refuses_heads(subject: Subject) -> Iterator[Hit]:
    """VLLM does not load an adapter that replaces modules.

    It refuses whatever has `modules_to_save`.

    ## Example

        "modules_to_save": ["classifier"]

    ## How to mend it

    Merge it into its base and serve that: `lora-hub merge`.
    """
    if subject.config is not None and subject.config.modules_to_save:
        yield Hit(
            message="vLLM does not load adapters with `modules_to_save`",
            hint="merge it into its base (`lora-hub merge`) to serve it there",
            file=CONFIG_NAME,
            place="modules_to_save",
        )


def _differs(subject: Subject) -> list[str]:
    """Return the paths whose scaling is another one than r and alpha of the config alone say."""
    config = subject.config
    if config is None:
        return []
    general = scaling(config.r, config.lora_alpha, use_rslora=config.use_rslora)
    own = {m.path: scaling(m.r, m.alpha, use_rslora=config.use_rslora) for m in subject.modules}
    return [path for path, factor in own.items() if factor != general]


@finds("LH312", "vllm-scaling", severity=Severity.NOTE)
def vllm_scaling(subject: Subject) -> Iterator[Hit]:
    """VLLM scales some modules wrongly: it does not read `rank_pattern` and `alpha_pattern`.

    It computes one scaling of `r` and `lora_alpha` for all modules, so those with a pattern of their own get another
    one than they were trained with. There is no message.

    ## Example

        "r": 8, "lora_alpha": 16, "alpha_pattern": {"v_proj": 64}

    ## How to mend it

    `lora-hub compose REF=1 --rank fit:vllm -o out/` folds the scaling into B and writes one rank and one alpha.
    """
    paths = _differs(subject)
    if paths:
        yield Hit(
            message=f"vLLM scales {some(paths)} wrongly: it does not read the patterns",
            hint=_SAME_EVERYWHERE,
            file=CONFIG_NAME,
            place=paths[0],
        )


@finds("LH313", "vllm-vocabulary", severity=Severity.NOTE)
def vllm_vocabulary(subject: Subject) -> Iterator[Hit]:
    """The adapter changes embedding or output, which vLLM's LoRA does not cover for every model.

    vLLM attaches LoRA to linear modules that a model class names. Embedding and output are among them for some only,
    and with other limits in every release.

    ## Example

        "target_modules": ["q_proj", "lm_head"]

    ## How to mend it

    Train without them, or merge the adapter: `lora-hub merge`.
    """
    concerned = [path for path in _vocabulary(subject) if path in subject.pairs]
    if concerned:
        yield Hit(
            message=f"vLLM applies LoRA to {some(concerned)} for some models only",
            hint="train without it, or merge it into its base to serve it there",
            file=CONFIG_NAME,
            place=concerned[0],
        )


@finds("LH320", "llama-cpp-scaling", severity=Severity.NOTE)
def llama_cpp_scaling(subject: Subject) -> Iterator[Hit]:
    """llama.cpp scales the adapter wrongly: a GGUF adapter has one alpha, and each tensor's own rank.

    The converter does not read `use_rslora`, nor `alpha_pattern`. Modules with a rank of their own are scaled by
    alpha / own rank.

    ## Example

        "use_rslora": true, "r": 64, "lora_alpha": 16          # 16/8 in PEFT, 16/64 in llama.cpp

    ## How to mend it

    Fold the scaling into B first: `lora-hub compose REF=1 --rank fit:vllm -o out/` writes one rank and one alpha,
    without rsLoRA.
    """
    config = subject.config
    if config is None:
        return
    wrong = [m.path for m in subject.modules if _scaled(subject, m.r, m.alpha) != config.lora_alpha / m.r]
    if wrong:
        yield Hit(
            message=f"llama.cpp scales {some(wrong)} wrongly: it reads neither `use_rslora` nor `alpha_pattern`",
            hint=_SAME_EVERYWHERE,
            file=CONFIG_NAME,
            place=wrong[0],
        )


def _scaled(subject: Subject, r: int, alpha: float) -> float:
    return scaling(r, alpha, use_rslora=subject.config is not None and subject.config.use_rslora)


@finds("LH321", "llama-cpp-refuses", severity=Severity.NOTE)
def llama_cpp_refuses(subject: Subject) -> Iterator[Hit]:
    """llama.cpp's converter stops at tensors that are not A or B: those of `modules_to_save`.

    ## Example

        base_model.model.lm_head.weight

    ## How to mend it

    Merge the adapter into its base, and convert that.
    """
    if subject.heads:
        yield Hit(
            message=f"llama.cpp does not convert adapters that replace modules: {some(sorted(subject.heads))}",
            hint="merge it into its base (`lora-hub merge`), and convert that",
            file=WEIGHTS_NAME,
            place=min(subject.heads),
        )


CHECKS = (vllm_rank, vllm_refuses_heads, vllm_scaling, vllm_vocabulary, llama_cpp_scaling, llama_cpp_refuses)
