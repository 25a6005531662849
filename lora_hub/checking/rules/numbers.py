"""LH111 to LH116: are the numbers those of a trained adapter, and is its scaling sane."""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.subject import Subject
from lora_hub.documents.adapter_config import scaling
from lora_hub.documents.adapter_layout import LoraModule
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import CONFIG_NAME, WEIGHTS_NAME

LARGE_SCALING = 64  # of alpha/r; 1 and 2 are usual, and QLoRA's recipes have 16
_SHOWN = 3  # names in one message


def some(names: list[str]) -> str:
    """Return the first of *names*, and how many there are if not all are shown."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _scaling(subject: Subject, module: LoraModule) -> float:
    return scaling(module.r, module.alpha, use_rslora=subject.config is not None and subject.config.use_rslora)


def _dead(subject: Subject) -> list[str]:
    """Return the paths of the modules whose delta is zero whatever comes in."""
    values = subject.values
    return [
        module.path
        for module in subject.modules
        if module.alpha == 0 or values.is_zero(module.lora_B) or values.is_zero(module.lora_A)
    ]


@finds("LH111", "not-finite")
def not_finite(subject: Subject) -> Iterator[Hit]:
    """A tensor holds NaN or infinity.

    One such number makes every output NaN. PEFT loads it; only `merge(safe_merge=True)` looks.

    ## Example

    A training run in float16 that overflowed, and went on to save every epoch.

    ## How to mend it

    Go back to a checkpoint before the loss became NaN, and train on with a lower learning rate or in bfloat16.
    """
    # `verify` has looked at every number already.
    for key in subject.values.not_finite() if subject.refusal is not None else ():
        yield Hit(
            message=f"the tensor {printable(key)} holds NaN or infinity",
            hint="the training diverged: go back to a checkpoint",
            file=WEIGHTS_NAME,
            place=key,
        )


@finds("LH112", "does-nothing")
def does_nothing(subject: Subject) -> Iterator[Hit]:
    """Every delta of the adapter is zero: the model with it is the model without it.

    B begins at zero (Hu et al. 2021, section 4.1), so this is an adapter that was never trained, or whose training did
    not reach it; or alpha is 0.

    ## Why it matters

    It loads, runs and costs time, and evaluations show "no regression".

    ## Example

    `get_peft_model(model, config).save_pretrained("out/")` before the trainer ran; an optimiser that was made before
    the adapter was added.

    ## How to mend it

    Check that the optimiser has A and B, and save after training. To publish it all the same: `push --allow LH112`.
    """
    if subject.modules and not subject.heads and len(_dead(subject)) == len(subject.modules):
        yield Hit(
            message=f"the deltas of all {len(subject.modules)} modules are zero",
            hint="train it, and save it then; was the optimiser made after the adapter was added?",
            file=WEIGHTS_NAME,
        )


@finds("LH113", "dead-module", severity=Severity.WARNING)
def dead_module(subject: Subject) -> Iterator[Hit]:
    """Some modules have a delta of zero, others do not.

    Their A or B is all zeros, or their alpha is 0. They cost memory and time in every forward pass, and may be layers
    that the gradient never reached.

    ## Example

    32 layers were wrapped, and the upper 8 were frozen by another setting of the trainer.

    ## How to mend it

    Check what was trained. Leave the modules out (`exclude_modules`, `layers_to_transform`) if it was on purpose.
    """
    dead = _dead(subject)
    if dead and (subject.heads or len(dead) < len(subject.modules)):
        yield Hit(
            message=f"{len(dead)} of {len(subject.modules)} modules have a delta of zero: {some(dead)}",
            hint="check that they were trained, or leave them out",
            file=WEIGHTS_NAME,
            place=dead[0],
        )


@finds("LH114", "duplicated-layers", severity=Severity.WARNING)
def duplicated_layers(subject: Subject) -> Iterator[Hit]:
    """Several modules have the very same A and B.

    Two modules that were trained apart never end with the same bits. One was copied over the other, by a conversion
    that forgot the layer's number, for example, or by a checkpoint that was written in pieces.

    ## Example

    Layers 16 to 31 are those of 0 to 15.

    ## How to mend it

    Look at the script that wrote the file. If the layers share their adapter on purpose, ignore this rule.
    """
    keys = {(m.lora_A, m.lora_B): m.path for m in subject.modules if not subject.values.is_zero(m.lora_B)}
    for same in subject.values.groups_of_equals(list(keys)):
        paths = sorted(keys[pair[0], pair[1]] for pair in same)
        yield Hit(
            message=f"{some(paths)} have the same A and B",
            hint="a conversion may have copied one over the others: check the script that wrote it",
            file=WEIGHTS_NAME,
            place=paths[0],
        )


@finds("LH115", "scaling", severity=Severity.WARNING)
def odd_scaling(subject: Subject) -> Iterator[Hit]:
    """The scaling alpha/r (or alpha/√r with rsLoRA) is far from any that is usual.

    Alpha is not in the tensors: one edited digit in the config multiplies every delta, and nothing else shows it. Above
    64 this is a warning, above 1,000,000 the adapter is refused; a negative scaling, which takes the adapter away from
    the base instead of adding it, is a note.

    ## Example

        "r": 8, "lora_alpha": 16000

    ## How to mend it

    Write the alpha that it was trained with: 1 or 2 times r is usual, and up to 16 times r in QLoRA's recipes.
    """
    for path, error in subject.bad_modules.items():
        if "is scaled by" in error.message:
            yield Hit(
                message=error.message, hint=str(error.hint), file=CONFIG_NAME, place=path, severity=Severity.ERROR
            )
    by_factor: dict[float, list[str]] = {}
    for module in subject.modules:
        by_factor.setdefault(_scaling(subject, module), []).append(module.path)
    for factor, paths in sorted(by_factor.items()):
        if factor < 0 or factor > LARGE_SCALING:
            yield Hit(
                message=f"{some(paths)} {'is' if len(paths) == 1 else 'are'} scaled by {factor:g}",
                hint="check `lora_alpha`, `r` and the patterns: 1 or 2 is usual",
                file=CONFIG_NAME,
                place=paths[0],
                severity=Severity.WARNING if abs(factor) > LARGE_SCALING else Severity.NOTE,
            )


@finds("LH116", "unusual-dtype", severity=Severity.NOTE)
def unusual_dtype(subject: Subject) -> Iterator[Hit]:
    """The tensors have several dtypes, or float64.

    Both load. Several dtypes hint at a file that was put together from two; float64 takes twice the space of float32
    for digits that no model uses. PEFT makes float32 of all of them when it loads.

    ## Example

    A in float32 and B in bfloat16.

    ## How to mend it

    Convert all tensors to bfloat16 or float32 before saving.
    """
    dtypes = sorted({tensor.dtype for tensor in subject.tensors.values()})
    if subject.refusal is None and (len(dtypes) > 1 or "F64" in dtypes):
        yield Hit(
            message=f"the tensors are stored as {' and '.join(dtypes)}",
            hint="bfloat16 or float32 for all of them is usual",
            file=WEIGHTS_NAME,
        )


CHECKS = (
    not_finite,
    does_nothing,
    dead_module,
    duplicated_layers,
    odd_scaling,
    unusual_dtype,
)
