"""LH301 to LH307: what PEFT and transformers make of the files, where it is not what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.rules.numbers import MAX_COMPARISONS, some
from lora_hub.checking.subject import Subject
from lora_hub.documents.adapter_layout import PREFIX, plain_path
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import CONFIG_NAME, WEIGHTS_NAME

# The release of PEFT that first knew a key; https://github.com/huggingface/peft, src/peft/tuners/lora/config.py.
_SINCE = {
    "rank_pattern": (0, 6),
    "alpha_pattern": (0, 6),
    "use_rslora": (0, 8),
    "use_dora": (0, 9),
    "exclude_modules": (0, 14),
}
_KNOWN_BEFORE = (0, 14)  # since which unknown keys are ignored; before, they were a TypeError
_NEWER_KEYS = frozenset(
    {
        "lora_bias", "corda_config", "trainable_token_indices", "qalora_group_size", "use_qalora", "target_parameters",
        "alora_invocation_tokens", "arrow_config", "ensure_weight_tying", "peft_version", "use_bdlora", "kasa_config",
        "velora_config", "monteclora_config", "lora_ga_config",
    }
)  # fmt: skip
_NAMED_LORA = re.compile(r"\.lora_[AB]\.[^.]+\.weight$")
_EXPERT = re.compile(r"\.experts\.\d+\.")
# Two quantifiers, one inside the other: what takes exponential time on a name that does not match.
_NESTED = re.compile(r"\([^()]*[*+][^()]*\)[*+{]|[*+]\)?[*+]")
# What transformers 5 renamed: the old end of a path, and the model types whose files have it still.
RENAMED_TYPES = ("vit", "deit", "dinov2", "ijepa", "vit_mae", "vit_msn", "yolos")
_RENAMED = {r"\.attention\.attention\.(query|key|value)$": RENAMED_TYPES}


@finds("LH301", "needs-newer-peft", severity=Severity.NOTE)
def needs_newer_peft(subject: Subject) -> Iterator[Hit]:
    """Old releases of PEFT do not load this adapter, or not as it is meant.

    Each key of the config has a first release that knows it. Before 0.14 an unknown key was a `TypeError`; a pattern
    with a full path could not match before 0.15.

    ## How to mend it

    Nothing needs to be done, unless somebody uses an old PEFT. `save_adapter` writes only keys that 0.14 knows.
    """
    used = {key for key in _SINCE if subject.document.get(key) not in (None, False, {}, [], "")}
    needed = max([(0, 5), *(_SINCE[key] for key in used)])
    if _NEWER_KEYS & subject.document.keys():
        needed = max(needed, _KNOWN_BEFORE)
    patterns = (*subject.config.rank_pattern, *subject.config.alpha_pattern) if subject.config else ()
    if any(pattern.is_anchored for pattern, _ in patterns):
        needed = max(needed, (0, 15))
    if needed > (0, 5):
        yield Hit(
            message=f"it needs PEFT {'.'.join(map(str, needed))} or newer",
            hint="nothing needs to be done, unless somebody uses an older one",
            file=CONFIG_NAME,
        )


@finds("LH302", "patterns-overlap", severity=Severity.WARNING)
def patterns_overlap(subject: Subject) -> Iterator[Hit]:
    """Two keys of `rank_pattern` or `alpha_pattern` match one module, and give it different values.

    ## Why it matters

    PEFT takes the first one that matches, in the order of the file; and it sorts the keys whenever it saves. So loading
    and saving changes the scaling (from 8 to 2 in our measurement), or makes a file that PEFT itself cannot load again.

    ## Example

        "alpha_pattern": {"q_proj": 64, "layers.0.self_attn.q_proj": 16}

    ## How to mend it

    Write keys that do not overlap: full paths, or ends that no other key has.
    """
    config = subject.config
    if config is None:
        return
    for name, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for path in subject.paths if len(patterns) * len(subject.paths) <= MAX_COMPARISONS else ():
            matching = [(pattern.key, value) for pattern, value in patterns if pattern.matches(path)]
            if len({value for _, value in matching}) > 1:
                keys = " and ".join(printable(key) for key, _ in matching[:2])
                yield Hit(
                    message=f"`{name}` has {keys}, which both match `{path}` with different values",
                    hint="write keys that do not overlap: PEFT sorts them when it saves, and takes the first",
                    file=CONFIG_NAME,
                    place=name,
                )
                break


@finds("LH303", "experts-apart", severity=Severity.WARNING)
def experts_apart(subject: Subject) -> Iterator[Hit]:
    """The adapter has tensors for each expert of a mixture, as transformers 4 named them.

    ## Why it matters

    In transformers 5 the experts of most mixtures are one parameter of three axes. PEFT converts such an adapter when
    it loads (A concatenated, B block-diagonal, twice the rank), and cannot convert it back; servers expect the one form
    or the other, and dropped or crashed on the wrong one for months.

    ## Example

        ….block_sparse_moe.experts.3.w1.lora_A.weight

    ## How to mend it

    Train attention only, or state in the card for which transformers and which server the adapter is.
    """
    found = [path for path in subject.paths if _EXPERT.search(path)]
    if found:
        yield Hit(
            message=f"the adapter has tensors for single experts: {some(found)}",
            hint="transformers 5 fuses them: say in the card which transformers and which server it is for",
            file=WEIGHTS_NAME,
            place=found[0],
        )


@finds("LH304", "renamed-in-transformers-5", severity=Severity.WARNING)
def renamed_in_transformers_5(subject: Subject) -> Iterator[Hit]:
    """The adapter's modules have other names in transformers 5.

    ## Why it matters

    Vision models were renamed (`attention.attention.query` is `attention.q_proj` now). PEFT does not find the targets,
    or, with the targets corrected by hand, loads nothing at all and only warns: every B stays zero.

    ## Example

    A ViT adapter from transformers 4 with targets `query` and `value`.

    ## How to mend it

    Train it again on transformers 5, or pin transformers 4 where it is used. `model.load_adapter` of transformers 5
    renames the keys.
    """
    for pattern, model_types in _RENAMED.items():
        found = [path for path in subject.paths if re.search(pattern, path)]
        if found and (subject.model_type is None or subject.model_type in model_types):
            yield Hit(
                message=f"{some(found)} {'has' if len(found) == 1 else 'have'} another name in transformers 5",
                hint="`model.load_adapter` of transformers 5 renames them; PeftModel loads nothing",
                file=WEIGHTS_NAME,
                place=found[0],
            )


@finds("LH305", "key-that-peft-drops", severity=Severity.WARNING)
def key_that_peft_drops(subject: Subject) -> Iterator[Hit]:
    """A tensor's key is not spelt as PEFT writes it, so PEFT drops the tensor.

    lora-hub understands keys without PEFT's prefix, with what `torch.compile`, FSDP or DDP put into them, and with the
    name of the adapter left in. PEFT does not.

    ## Why it matters

    `PeftModel.from_pretrained` never reports a key that it did not expect. The adapter loads, and does nothing.

    ## Example

        _orig_mod.model.layers.0.self_attn.q_proj.lora_A.default.weight

    ## How to mend it

    Save the adapter again: `save_adapter` writes PEFT's keys. With PEFT, save the model inside the wrapper
    (`model._orig_mod`, `accelerator.unwrap_model(model)`).
    """
    keys = [key for keys in (*subject.pairs.values(), *subject.heads.values()) for key in keys.values()]
    odd = sorted(key for key in keys if not _is_pefts(key))
    if odd:
        yield Hit(
            message=f"{len(odd)} of {len(keys)} keys are not spelt as PEFT writes them: {some(odd)}",
            hint="save the adapter again: `save_adapter` writes PEFT's keys",
            file=WEIGHTS_NAME,
            place=odd[0],
        )


def _is_pefts(key: str) -> bool:
    return key.startswith(PREFIX) and plain_path(key) == key and not _NAMED_LORA.search(key)


@finds("LH306", "targets-are-a-regex", severity=Severity.NOTE)
def targets_are_a_regex(subject: Subject) -> Iterator[Hit]:
    r"""`target_modules` or `exclude_modules` is a regular expression.

    ## Why it matters

    PEFT runs it against the name of every module. It says which modules the adapter is for only together with a model,
    so several rules here cannot look at it; and one with nested quantifiers can run for ever (a warning). lora-hub
    never runs it: it attaches by the names of the tensors.

    ## Example

        "target_modules": ".*\\.(q|v)_proj"

    ## How to mend it

    Write a list of names. `save_adapter` does.
    """
    for key in ("target_modules", "exclude_modules"):
        value = subject.document.get(key)
        if isinstance(value, str) and value and value.lower() != "all-linear":
            is_slow = _NESTED.search(value[:1024]) is not None
            yield Hit(
                message=f"`{key}` is the regular expression {printable(value)}"
                + (", whose nested quantifiers can take for ever" if is_slow else ""),
                hint="write a list of names",
                file=CONFIG_NAME,
                place=key,
                severity=Severity.WARNING if is_slow else Severity.NOTE,
            )


@finds("LH307", "layers-without-effect", severity=Severity.WARNING)
def layers_without_effect(subject: Subject) -> Iterator[Hit]:
    """`layers_to_transform` stands beside targets that are full paths, which it does not apply to.

    ## Why it matters

    PEFT takes a target that is the full path of a module whatever the layers say. The list looks as if it limited
    something, and does not; readers that apply it drop tensors.

    ## Example

        "target_modules": ["model.layers.7.self_attn.q_proj"], "layers_to_transform": [0]

    ## How to mend it

    Remove `layers_to_transform`: the paths say it already.
    """
    config = subject.config
    if config is None or not config.layers_to_transform or not isinstance(config.target_modules, tuple):
        return
    full = sorted(set(config.target_modules) & set(subject.paths))
    if full:
        yield Hit(
            message=f"`layers_to_transform` does not apply to targets that are full paths: {some(full)}",
            hint="remove `layers_to_transform`: the paths say it already",
            file=CONFIG_NAME,
            place="layers_to_transform",
        )


CHECKS = (
    needs_newer_peft,
    patterns_overlap,
    experts_apart,
    renamed_in_transformers_5,
    key_that_peft_drops,
    targets_are_a_regex,
    layers_without_effect,
)
