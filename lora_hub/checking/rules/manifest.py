"""LH015 to LH017: does `lora-hub.json` describe the files that lie beside it."""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.rules.documents import hit_of
from lora_hub.checking.subject import Subject
from lora_hub.documents.adapter_layout import read_layout, slices_by_module
from lora_hub.documents.manifest import MANIFEST_NAME, FileEntry, Manifest
from lora_hub.documents.verified_adapter import check_file, check_fingerprint, check_summary, describe
from lora_hub.errors import IntegrityError, MalformedError


@finds("LH015", "file-differs")
def file_differs(subject: Subject) -> Iterator[Hit]:
    """A file is not the one that the manifest describes.

    The manifest has size and SHA-256 of config and weights. A file that was changed, damaged or exchanged since then is
    another adapter under an old name.

    ## Example

    Somebody edits `lora_alpha` in `adapter_config.json` of a published version: outputs change, and no tensor does.

    ## How to mend it

    Get the version again. If you changed the file on purpose, delete `lora-hub.json` beside it (or save the adapter
    again) and publish the result as the next version.
    """
    for name, error in subject.unread.items():
        if isinstance(error, IntegrityError):
            yield hit_of(error, file=name)
    expected = {entry.name: entry for entry in subject.manifest.files} if subject.manifest else {}
    for entry in subject.found:
        difference = _difference(expected.get(entry.name), entry, subject.source)
        if difference is not None:
            yield hit_of(difference, file=entry.name)


def _difference(expected: FileEntry | None, found: FileEntry, source: str) -> IntegrityError | None:
    try:
        if expected is not None:
            check_file(expected, found, source=source)
    except IntegrityError as error:
        return error
    return None


@finds("LH016", "manifest-contradicts")
def manifest_contradicts(subject: Subject) -> Iterator[Hit]:
    """The manifest says something else than config and tensors.

    The manifest is what people and registries read: rank, alpha, dtype and number of parameters stand there so that
    nobody has to open the weights. They are compared with what config and tensors say.

    ## Example

        `lora-hub.json` says r is `64`, config and tensors say `8`

    ## How to mend it

    Save the adapter again, or delete `lora-hub.json` beside it.
    """
    if subject.manifest is None or subject.refusal is None or subject.bad_modules or subject.bad_keys:
        return
    derived = _derived(subject)
    if derived is None:
        return
    try:
        check_summary(subject.manifest.lora, derived.lora)
    except MalformedError as error:
        yield hit_of(error, file=MANIFEST_NAME, place="lora")
    try:
        check_fingerprint(subject.manifest.base.fingerprint, subject.modules)
    except MalformedError as error:
        yield hit_of(error, file=MANIFEST_NAME, place="base.fingerprint")


def _derived(subject: Subject) -> Manifest | None:
    """Return the manifest that config and tensors would have, if they are sound."""
    if subject.config is None or subject.manifest is None:
        return None
    try:
        layout = read_layout(subject.config, subject.tensors, subject.manifest.lora.slices)
        return describe(subject.config, layout, subject.tensors, subject.manifest.files)
    except (MalformedError, KeyError):  # which other rules have found
        return None


@finds("LH017", "slices-contradict")
def slices_contradict(subject: Subject) -> Iterator[Hit]:
    """The manifest's slices are no reading of the tensors.

    On a fused projection, such as GPT-2's `c_attn`, an adapter of q and v is stored for PEFT as one of rank 2r with
    zeros for k. The manifest's slices say which rows belong to which part; they must add up to the very matrices that
    PEFT reads: same ranks, rows within the output, same scaling.

    ## Example

    Slices of ranks 4 and 4 in a module whose A is `[12, in]`.

    ## How to mend it

    Save the adapter again with `save_adapter`, which writes both.
    """
    if subject.manifest is None or not subject.manifest.lora.slices:
        return
    try:
        slices_by_module(subject.manifest.lora.slices, subject.pairs)
    except MalformedError as error:
        yield hit_of(error, file=MANIFEST_NAME, place="lora.slices")
    for path, reason in subject.bad_modules.items():
        if "slices" in reason.message:
            yield hit_of(reason, file=MANIFEST_NAME, place=path)


CHECKS = (file_differs, manifest_contradicts, slices_contradict)
