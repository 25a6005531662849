"""LH101 to LH106, LH110 and LH120: has every tensor one purpose and its counterpart."""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.rules.documents import hit_of
from lora_hub.checking.subject import Subject
from lora_hub.documents.adapter_layout import PREFIX
from lora_hub.documents.manifest import WEIGHTS_NAME

_SAVE_AGAIN = "save or download the adapter again"
_MATRIX = 2  # axes


def _is_ungathered(subject: Subject, path: str) -> bool:
    shapes = [subject.tensors[key].shape for key in subject.pairs[path].values()]
    return any(len(shape) != _MATRIX or 0 in shape for shape in shapes)


@finds("LH101", "shape-against-rank")
def shape_against_rank(subject: Subject) -> Iterator[Hit]:
    """A and B of a module have another rank than the config says, or do not fit each other.

    A is `[r, in]` and B is `[out, r]`, with the r that `r` and `rank_pattern` of the config give to the module.

    ## Why it matters

    PEFT makes its matrices after the config, and then fails with `size mismatch`, naming every tensor and no field of
    the config; the model is modified by then. The scaling is alpha/r, so a wrong r that happens to load is a wrong
    output.

    ## Example

        `model.layers.0.self_attn.q_proj` has A of shape [16, 4096] and B of shape [4096, 16],
        expected [8, in] and [out, 8] after `r` and `rank_pattern` of the config

    ## How to mend it

    Config and weights are not of one adapter: find the right pair, or correct `r`. Where a `rank_pattern` overlaps
    another one, see LH302.
    """
    if not subject.bad_keys.keys().isdisjoint({"r", "rank_pattern"}):
        return  # which rank it is, is not known
    for path, error in subject.bad_modules.items():
        if error.message.startswith(f"`{path}` has A of shape") and not _is_ungathered(subject, path):
            yield hit_of(error, file=WEIGHTS_NAME, place=path)


@finds("LH102", "half-a-pair")
def half_a_pair(subject: Subject) -> Iterator[Hit]:
    """A module has A without B, or B without A.

    The delta is their product. PEFT leaves the missing one as it was initialised (B is zero, A random), so the module
    does nothing or something random, after one warning among others.

    ## Example

        the tensor `model.layers.0.self_attn.q_proj.lora_B.weight` is missing

    ## How to mend it

    The file is not whole, or keys were renamed on the way: save the adapter again.
    """
    for path, keys in sorted(subject.pairs.items()):
        for side in "AB":
            if side not in keys:
                yield Hit(
                    message=f"the tensor `{path}.lora_{side}.weight` is missing",
                    hint=_SAVE_AGAIN,
                    file=WEIGHTS_NAME,
                    place=path,
                )


def _strange(subject: Subject, words: tuple[str, ...], *, others: bool = False) -> Iterator[Hit]:
    """Yield the tensors without a purpose whose error has one of *words*, or none of them."""
    for key, error in subject.bad_tensors.items():
        if any(word in error.message for word in words) is not others:
            yield hit_of(error, file=WEIGHTS_NAME, place=key)


_BASE, _TWICE, _METHOD = "a weight of the base model", "are the same parameter", "which lora-hub does not apply"


@finds("LH103", "tensor-without-purpose")
def tensor_without_purpose(subject: Subject) -> Iterator[Hit]:
    """A tensor is neither A nor B of a module, nor of one of `modules_to_save`.

    ## Why it matters

    PEFT drops keys that it does not expect, and does not say so. A part of the training is then missing; or the file
    carries something that nobody looks at.

    ## Example

        base_model.model.score.weight        # and `modules_to_save` is null

    ## How to mend it

    Add the module to `modules_to_save` if it was trained, else save the adapter without it. `base_model.model.` is
    PEFT's prefix, `….lora_A.weight` and `….lora_B.weight` are the ends that are read.
    """
    return _strange(subject, (_BASE, _TWICE, _METHOD), others=True)


@finds("LH104", "tensor-of-another-method")
def tensor_of_another_method(subject: Subject) -> Iterator[Hit]:
    """A tensor belongs to another method than LoRA on linear modules.

    Magnitudes of DoRA, LoRA on embeddings, trainable tokens, KaSA's diagonal and others.

    ## Why it matters

    If `use_dora` is false and the magnitudes are there, PEFT loads the rest and drops them without a message: the
    outputs are those of another adapter.

    ## Example

        base_model.model.….q_proj.lora_magnitude_vector

    ## How to mend it

    Convert the adapter to plain LoRA (`peft.convert_to_lora`), or train without the method. PEFT saves embeddings by
    itself if they were resized: `save_pretrained(…, save_embedding_layers=False)` leaves them out.
    """
    return (hit for hit in _strange(subject, (_METHOD,)) if _BASE not in hit.message)


@finds("LH105", "base-weights-inside")
def base_weights_inside(subject: Subject) -> Iterator[Hit]:
    """The adapter holds weights of the base model.

    ## Why it matters

    PEFT copies them over those of the base, without a message: an adapter that is loaded can so replace any weight of
    the model. We found no reason for it in an adapter of linear modules, and one for an attacker.

    ## Example

        base_model.model.….o_proj.base_layer.weight

    ## How to mend it

    Save the adapter again without them: `save_embedding_layers=False`, if they are embeddings. A module that was really
    trained whole belongs to `modules_to_save`, where everybody sees it.
    """
    return _strange(subject, (_BASE,))


@finds("LH106", "tensor-twice")
def tensor_twice(subject: Subject) -> Iterator[Hit]:
    """Two tensors are the same parameter.

    Keys differ by what wrappers put into them (`module.`, `_orig_mod.`) or by the name of the adapter, and mean one and
    the same matrix. Which one counts depends on the reader.

    ## Example

        base_model.model.….q_proj.lora_A.weight
        base_model.model.….q_proj.lora_A.default.weight

    ## How to mend it

    Save the adapter again from a model that holds one adapter.
    """
    return _strange(subject, (_TWICE,))


@finds("LH110", "not-gathered")
def not_gathered(subject: Subject) -> Iterator[Hit]:
    """A tensor is empty or flat: it was saved before its shards were gathered.

    DeepSpeed ZeRO-3 and FSDP keep a part of every parameter on each process. Saved there, A and B are empty or have one
    axis. PEFT loads such a file with a warning about missing keys, and the adapter does nothing.

    ## Example

        `….q_proj` has A of shape [0] and B of shape [0], expected two matrices

    ## How to mend it

    Gather, then save: `stage3_gather_16bit_weights_on_model_save` with DeepSpeed, `FULL_STATE_DICT` with FSDP; or
    `accelerator.get_state_dict(model)` before `save_pretrained`.
    """
    for path in subject.paths:
        if _is_ungathered(subject, path):
            keys = sorted(subject.pairs[path].items())
            shapes = " and ".join(f"{side} of shape {list(subject.tensors[key].shape)}" for side, key in keys)
            yield Hit(
                message=f"`{path}` has {shapes}, expected two matrices",
                hint="it was saved before ZeRO-3 or FSDP gathered it: gather, then save",
                file=WEIGHTS_NAME,
                place=path,
            )


@finds("LH120", "no-lora-tensors")
def no_lora_tensors(subject: Subject) -> Iterator[Hit]:
    """The file has no LoRA tensors at all.

    PEFT loads it with a warning about missing keys, and the model is the base.

    ## Example

    A file of 40 bytes, from a process that held no shard; or the weights of a whole model under the wrong name.

    ## How to mend it

    Save the adapter on the process that has it. Keys look like `base_model.model.….lora_A.weight`.
    """
    if WEIGHTS_NAME in subject.files and not subject.pairs and (subject.tensors or subject.bad_weights is None):
        yield Hit(
            message="the adapter has no LoRA tensors",
            hint=f"expected keys like `{PREFIX}….lora_A.weight`",
            file=WEIGHTS_NAME,
        )


CHECKS = (
    shape_against_rank,
    half_a_pair,
    tensor_without_purpose,
    tensor_of_another_method,
    base_weights_inside,
    tensor_twice,
    not_gathered,
    no_lora_tensors,
)
