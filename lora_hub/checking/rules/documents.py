"""LH001 to LH009: are the files of an adapter there, and can they be read."""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.subject import Subject
from lora_hub.documents.manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from lora_hub.errors import IntegrityError, LoraHubError, NotFoundError

_PICKLE = "adapter_model.bin"
_READ_AGAIN = "download the adapter again, or save it again"


def hit_of(error: LoraHubError, *, file: str | None = None, place: str | None = None) -> Hit:
    """Return what *error* says, as one place where a rule is broken."""
    return Hit(message=error.message, hint=error.hint or _READ_AGAIN, file=file, place=place)


@finds("LH001", "refused")
def refused(subject: Subject) -> Iterator[Hit]:
    """The adapter is refused for a reason that no other rule names.

    Whatever this check says, `lora_hub.verify` has the last word on what may be loaded. This rule is what is left when
    it refuses an adapter and no other rule found an error, so that a check never passes what cannot be applied.

    ## Example

    A config with so many patterns that comparing them with the tensors would take minutes.

    ## How to mend it

    The message is that of `verify`, and its hint says what to do.
    """
    if subject.refusal is not None:
        yield hit_of(subject.refusal)


@finds("LH002", "file-missing")
def file_missing(subject: Subject) -> Iterator[Hit]:
    """A file that every adapter has is missing.

    An adapter is `adapter_config.json` and `adapter_model.safetensors`. Rank and alpha stand only in the first, the
    numbers only in the second: neither means anything alone.

    Where only `adapter_model.bin` lies there, it was saved by PEFT before 0.7. That is a pickle, which can run code
    when it is read, so lora-hub never reads it.

    ## Example

        out/
          adapter_model.safetensors      # and no adapter_config.json

    ## How to mend it

    Copy the missing file, or save the adapter again: `model.save_pretrained("out/")` in PEFT writes both. A pickle is
    converted by loading it in PEFT, where it is safe to do so, and saving it again.
    """
    for name, error in subject.unread.items():
        if isinstance(error, NotFoundError):
            hint = error.hint or _READ_AGAIN
            if name == WEIGHTS_NAME and _PICKLE in subject.beside:
                hint = f"`{_PICKLE}` is a pickle, which is never read: load it in PEFT and save it again"
            yield Hit(message=f"there is no `{name}`", hint=hint, file=name)


@finds("LH003", "file-unreadable")
def file_unreadable(subject: Subject) -> Iterator[Hit]:
    """A file is no regular file, larger than any of its kind, or cannot be read.

    A link to a device, a pipe or a directory in place of a file, or a config of gigabytes, is no adapter but an attempt
    to make a reader hang or run out of memory. Sizes are compared before anything is read.

    ## Example

    `adapter_config.json` with more than 4 MiB, or `adapter_model.safetensors` with more than 16 GiB.

    ## How to mend it

    Put the file itself there, and look at its permissions. If the weights are really that large, it is a full model and
    not an adapter.
    """
    for name, error in subject.unread.items():
        if not isinstance(error, NotFoundError | IntegrityError):
            yield hit_of(error, file=name)


@finds("LH012", "weights-unreadable")
def weights_unreadable(subject: Subject) -> Iterator[Hit]:
    """`adapter_model.safetensors` is no whole safetensors file.

    The header of the file says where every tensor lies. Here it is cut off, no JSON, or contradicts the size of the
    file: bytes that belong to no tensor, tensors that overlap, more tensors than any adapter has.

    ## Why it matters

    A truncated download is the usual cause. Bytes that no tensor claims are a place to hide something in; readers that
    map the file do not notice them.

    ## Example

        the safetensors file has 8200 bytes, its header describes 16400

    ## How to mend it

    Download the file again (`git lfs pull`, if it is a pointer of Git LFS), or save the adapter again.
    """
    if subject.bad_weights is not None and not subject.tensors:
        yield hit_of(subject.bad_weights, file=WEIGHTS_NAME)


@finds("LH013", "dtype-of-no-adapter")
def dtype_of_no_adapter(subject: Subject) -> Iterator[Hit]:
    """A tensor is stored in a dtype that no LoRA adapter has.

    A and B are floating point: float64, float32, float16 or bfloat16. Integers or 8-bit floats without their scales are
    not the numbers that were trained, and what a reader makes of them is a guess.

    ## Example

        lora_A.weight has dtype `I8`, expected one of F64, F32, F16, BF16

    ## How to mend it

    Save the adapter in bfloat16 or float32 before anything is quantised: only the base is.
    """
    allowed = {"F64", "F32", "F16", "BF16"}
    for key, tensor in subject.tensors.items():
        if tensor.dtype not in allowed:
            yield Hit(
                message=f"`{key}` has dtype `{tensor.dtype}`, expected one of F64, F32, F16, BF16",
                hint="save the adapter in one of these dtypes",
                file=WEIGHTS_NAME,
                place=key,
            )


@finds("LH014", "manifest-unreadable")
def manifest_unreadable(subject: Subject) -> Iterator[Hit]:
    """The manifest `lora-hub.json` is malformed, or was written by a newer lora-hub.

    The manifest says what a version is, and its SHA-256 is the version's identity. One that cannot be read proves
    nothing, so nothing beside it is trusted either.

    ## Example

        `files[1].size`: expected an integer from 0 to 17179869184, found `-1`

    ## How to mend it

    Save the adapter again, or delete `lora-hub.json` beside it: PEFT's two files are an adapter without it. If the
    schema is newer, upgrade lora-hub.
    """
    if subject.bad_manifest is not None:
        yield hit_of(subject.bad_manifest, file=MANIFEST_NAME)
    elif MANIFEST_NAME in subject.unread:
        yield hit_of(subject.unread[MANIFEST_NAME], file=MANIFEST_NAME)


@finds("LH004", "config-unreadable")
def config_unreadable(subject: Subject) -> Iterator[Hit]:
    """`adapter_config.json` is no JSON object.

    It is read strictly: UTF-8, no key twice, no NaN, no comments, nothing nested deeper than any config is. Readers
    differ in what they make of anything else, so that one and the same file would be two adapters.

    ## Example

        the key `r` stands twice in one object

    ## How to mend it

    Write the file again with PEFT's `save_pretrained`, rather than by hand.
    """
    if "" in subject.bad_keys:
        yield hit_of(subject.bad_keys[""], file=CONFIG_NAME)


CHECKS = (
    refused,
    file_missing,
    file_unreadable,
    config_unreadable,
    weights_unreadable,
    dtype_of_no_adapter,
    manifest_unreadable,
)
