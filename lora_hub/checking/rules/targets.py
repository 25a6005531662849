"""LH107 to LH109 and LH117 to LH119: do targets, heads, ranks and patterns of the config and the tensors agree."""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.rules.numbers import MAX_COMPARISONS, some
from lora_hub.checking.subject import Subject
from lora_hub.documents.adapter_layout import unserved_heads, unserved_targets, untargeted
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import CONFIG_NAME

_SAVE_AGAIN = "save or download the adapter again"


@finds("LH107", "target-without-tensors")
def target_without_tensors(subject: Subject) -> Iterator[Hit]:
    """An entry of `target_modules` has no tensor in the file.

    ## Why it matters

    PEFT wraps the module all the same and leaves B at zero, so a part of what was trained is missing after one warning.
    A typo beside a name that is right is never noticed.

    ## Example

        "target_modules": ["q_proj", "v_proj", "o_porj"]

    ## How to mend it

    Remove the entry if it was not trained; else save the adapter again.
    """
    if subject.config is None or not subject.pairs:
        return
    for entry in sorted(unserved_targets(subject.config, subject.paths)):
        yield Hit(
            message=f"`target_modules` names {printable(entry)}, but the adapter has no tensor for it",
            hint=_SAVE_AGAIN,
            file=CONFIG_NAME,
            place="target_modules",
        )


@finds("LH108", "tensor-outside-targets")
def tensor_outside_targets(subject: Subject) -> Iterator[Hit]:
    """There are tensors for a module that the config does not target.

    ## Why it matters

    PEFT does not wrap the module, and drops its tensors without a message (logits were off by 0.25 in our measurement).
    The config was edited, or is that of another adapter.

    ## Example

    `"target_modules": ["q_proj"]` beside tensors of `v_proj`; or `layers_to_transform: [0, 1]` beside 32 layers.

    ## How to mend it

    Name all modules that were trained in `target_modules`.
    """
    if subject.config is None:
        return
    for path in sorted(untargeted(subject.config, subject.paths)):
        yield Hit(
            message=f"the tensors of `{path}` belong to no entry of `target_modules`",
            hint="name the module in `target_modules`, or save the adapter again",
            file=CONFIG_NAME,
            place=path,
        )


@finds("LH109", "head-without-tensors")
def head_without_tensors(subject: Subject) -> Iterator[Hit]:
    """An entry of `modules_to_save` has no tensor in the file.

    A classifier that was trained from scratch and not saved is random again after loading. `classifier` and `score`,
    which PEFT adds to every classifier by itself, are no error.

    ## Example

        "modules_to_save": ["lm_head"]         # and no base_model.model.lm_head.weight

    ## How to mend it

    Save the adapter again with the module; or remove the entry if it was not trained.
    """
    if subject.config is None or not subject.tensors:
        return
    for entry in sorted(unserved_heads(subject.config, subject.heads)):
        yield Hit(
            message=f"`modules_to_save` names {printable(entry)}, but the adapter has no tensor for it",
            hint=_SAVE_AGAIN,
            file=CONFIG_NAME,
            place="modules_to_save",
        )


@finds("LH117", "rank-above-dimension", severity=Severity.WARNING)
def rank_above_dimension(subject: Subject) -> Iterator[Hit]:
    """The rank of a module is larger than its inputs or its outputs.

    B A has at most the rank of the smaller side, so what is above it is memory without an effect. Fused projections,
    which stack the ranks of their parts, are not meant.

    ## Example

    r = 256 on a module of 64 outputs.

    ## How to mend it

    `lora-hub compose REF=1 --rank exact` writes the same deltas at the rank that they have.
    """
    wide = [m for m in subject.modules if not m.slices and m.r > min(m.in_features, m.out_features)]
    if wide:
        module = wide[0]
        yield Hit(
            message=f"{some([m.path for m in wide])} {'has' if len(wide) == 1 else 'have'} rank {module.r}, more than "
            f"the {min(module.in_features, module.out_features)} that the matrix can have",
            hint="`lora-hub compose REF=1 --rank exact` writes the same deltas at a smaller rank",
            file=CONFIG_NAME,
            place=module.path,
        )


@finds("LH118", "pattern-matches-nothing", severity=Severity.WARNING)
def pattern_matches_nothing(subject: Subject) -> Iterator[Hit]:
    """A key of `rank_pattern` or `alpha_pattern` matches no module of the adapter.

    The module that was meant then has the default rank or alpha, and nothing says so before PEFT 0.21.

    ## Example

        "alpha_pattern": {"k_proj": 32}        # and the adapter has no k_proj

    ## How to mend it

    Remove the key, or correct it. A key is the whole path or its end, such as `self_attn.q_proj`.
    """
    if subject.config is None or not subject.paths:
        return
    if (len(subject.config.rank_pattern) + len(subject.config.alpha_pattern)) * len(subject.paths) > MAX_COMPARISONS:
        return
    patterns = {"rank_pattern": subject.config.rank_pattern, "alpha_pattern": subject.config.alpha_pattern}
    for name, entries in patterns.items():
        for pattern, _ in entries:
            if not any(map(pattern.matches, subject.paths)):
                yield Hit(
                    message=f"`{name}` has the key {printable(pattern.key)}, which matches no module of the adapter",
                    hint="remove it, or write the end of the path that was meant",
                    file=CONFIG_NAME,
                    place=name,
                )


@finds("LH119", "layer-without-tensors", severity=Severity.WARNING)
def layer_without_tensors(subject: Subject) -> Iterator[Hit]:
    """`layers_to_transform` names a layer that the adapter has no tensors for.

    PEFT ignores numbers beyond the last layer without a word. Either the list is wrong, or layers are missing.

    ## Example

        "layers_to_transform": [30, 31, 32]        # of a model with layers 0 to 31

    ## How to mend it

    Name the layers that were trained; the first is 0.
    """
    if subject.config is None or not subject.paths:
        return
    numbers = {int(part) for path in subject.paths for part in path.split(".") if part.isdecimal() and len(part) < 10}  # noqa: PLR2004 - digits of any layer
    missing = sorted(set(subject.config.layers_to_transform or ()) - numbers)
    if missing:
        yield Hit(
            message=f"`layers_to_transform` names {some([str(number) for number in missing])}, which no tensor is of",
            hint="name the layers that were trained; the first is 0",
            file=CONFIG_NAME,
            place="layers_to_transform",
        )


CHECKS = (
    target_without_tensors,
    tensor_outside_targets,
    head_without_tensors,
    rank_above_dimension,
    pattern_matches_nothing,
    layer_without_tensors,
)
