"""What can be wrong with the files that lie there; the signature is right for the files that should."""

from __future__ import annotations

from collections.abc import Iterator

from vectors.making.case import Case, malformed, refused
from vectors.making.published import (
    CONFIG_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    WEIGHTS_NAME,
    Files,
    adapter,
    signed,
    version,
)

FILES = signed(version())
NEWER = signed(version(adapter(lora_alpha=4), lora={"alpha": 4}, manifest=lambda d: d.update(version="1.1.0")))
OTHER = signed(version(manifest=lambda d: d.update(name="org/other")))


def lacking(name: str) -> Files:
    """Return the version without the file *name*."""
    return {key: content for key, content in FILES.items() if key != name}


def having(name: str, content: bytes) -> Files:
    """Return the version with *content* in the file *name*."""
    return {**FILES, name: content}


def flipped(name: str, position: int) -> Files:
    """Return the version with one bit of the file *name* flipped."""
    content = bytearray(FILES[name])
    content[position] ^= 1
    return having(name, bytes(content))


def _is_changed() -> Iterator[tuple[str, Case]]:
    for name, word in ((CONFIG_NAME, "config"), (WEIGHTS_NAME, "weights")):
        yield f"{word}_with_a_flipped_bit", refused(6, "the manifest says", flipped(name, -2))
        yield f"{word}_cut_off", refused(6, "bytes", having(name, FILES[name][:-1]))
        yield f"{word}_with_a_byte_more", refused(6, "bytes", having(name, FILES[name] + b"\0"))
        yield f"{word}_empty", refused(6, "bytes", having(name, b""))
    yield "manifest_has_a_flipped_bit", refused(6, "was signed", flipped(MANIFEST_NAME, 10))
    yield "manifest_has_a_new_line_more", refused(6, "was signed", having(MANIFEST_NAME, FILES[MANIFEST_NAME] + b"\n"))
    yield "manifest_is_empty", refused(6, "was signed", having(MANIFEST_NAME, b""))
    swapped = {**FILES, CONFIG_NAME: FILES[WEIGHTS_NAME], WEIGHTS_NAME: FILES[CONFIG_NAME]}
    yield "config_and_weights_are_swapped", refused(6, "bytes", swapped)


def _is_mixed() -> Iterator[tuple[str, Case]]:
    yield "config_is_of_another_version", refused(6, "the manifest says", having(CONFIG_NAME, NEWER[CONFIG_NAME]))
    yield "manifest_is_of_another_version", refused(6, "was signed", having(MANIFEST_NAME, NEWER[MANIFEST_NAME]))
    half = {**FILES, MANIFEST_NAME: NEWER[MANIFEST_NAME], SIGNATURE_NAME: NEWER[SIGNATURE_NAME]}
    yield "manifest_and_bundle_are_of_another_version", refused(6, "by its manifest", half)
    yield "everything_is_of_another_version", refused(6, "by its manifest", NEWER)
    yield "everything_is_of_another_adapter", refused(6, "by its manifest", OTHER)


def _is_missing() -> Iterator[tuple[str, Case]]:
    yield "config_is_missing", refused(3, "has no `adapter_config.json`", lacking(CONFIG_NAME))
    yield "weights_are_missing", refused(3, "has no `adapter_model.safetensors`", lacking(WEIGHTS_NAME))
    yield "manifest_is_missing", refused(3, "no adapter", lacking(MANIFEST_NAME))
    # A pickle that would make a file, if anything read it.
    pickle = b"cbuiltins\nopen\n(Vowned\nVw\ntR."
    only = {**lacking(WEIGHTS_NAME), "adapter_model.bin": pickle}
    yield "weights_are_a_pickle", refused(3, "has no `adapter_model.safetensors`", only)
    yield (
        "weights_have_another_case",
        refused(3, "has no", {**lacking(WEIGHTS_NAME), WEIGHTS_NAME.upper(): FILES[WEIGHTS_NAME]}),
    )
    yield (
        "manifest_has_another_case",
        refused(3, "no adapter", {**lacking(MANIFEST_NAME), "LORA-HUB.JSON": FILES[MANIFEST_NAME]}),
    )
    yield "version_is_not_there", refused(3, "no version", FILES, reference="org/task@2.0.0")
    yield "range_selects_nothing", refused(3, "no version", FILES, reference="org/task@^2")
    yield "adapter_is_not_there", refused(3, "no adapter", FILES, reference="org/other@1.0.0")


def _is_no_file() -> Iterator[tuple[str, Case]]:
    yield "config_is_a_fifo", refused(6, "the manifest says", lacking(CONFIG_NAME), special={"fifo": [CONFIG_NAME]})
    yield "weights_are_a_fifo", refused(6, "bytes", lacking(WEIGHTS_NAME), special={"fifo": [WEIGHTS_NAME]})
    yield "manifest_is_a_fifo", refused(3, "no adapter", lacking(MANIFEST_NAME), special={"fifo": [MANIFEST_NAME]})
    yield "bundle_is_a_fifo", refused(8, "not valid JSON", lacking(SIGNATURE_NAME), special={"fifo": [SIGNATURE_NAME]})
    yield "config_is_a_directory", malformed("directory", lacking(CONFIG_NAME), special={"directory": [CONFIG_NAME]})
    yield "weights_are_a_directory", refused(6, "bytes", lacking(WEIGHTS_NAME), special={"directory": [WEIGHTS_NAME]})
    yield (
        "bundle_is_a_directory",
        malformed("directory", lacking(SIGNATURE_NAME), special={"directory": [SIGNATURE_NAME]}),
    )
    endless = {"links": {WEIGHTS_NAME: "/dev/zero"}}
    yield "weights_are_endless", refused(6, "bytes", lacking(WEIGHTS_NAME), special=endless)
    yield (
        "bundle_is_endless",
        refused(8, "not valid JSON", lacking(SIGNATURE_NAME), special={"links": {SIGNATURE_NAME: "/dev/zero"}}),
    )
    nowhere = {"links": {WEIGHTS_NAME: "nowhere"}}
    yield "weights_are_a_link_to_nowhere", refused(3, "has no", lacking(WEIGHTS_NAME), special=nowhere)
    circle = {"links": {WEIGHTS_NAME: WEIGHTS_NAME}}
    yield "weights_are_a_link_to_themselves", refused(3, "has no", lacking(WEIGHTS_NAME), special=circle)
    outside = {"links": {CONFIG_NAME: "/etc/passwd"}}
    yield "config_is_a_link_to_somewhere_else", refused(6, "the manifest says", lacking(CONFIG_NAME), special=outside)


def _is_huge() -> Iterator[tuple[str, Case]]:
    terabyte = 2**40
    yield (
        "weights_are_a_terabyte",
        refused(6, "bytes", lacking(WEIGHTS_NAME), special={"sparse": {WEIGHTS_NAME: terabyte}}),
    )
    yield (
        "config_is_a_terabyte",
        malformed("at most", lacking(CONFIG_NAME), special={"sparse": {CONFIG_NAME: terabyte}}),
    )
    yield (
        "manifest_is_a_terabyte",
        malformed("at most", lacking(MANIFEST_NAME), special={"sparse": {MANIFEST_NAME: terabyte}}),
    )
    yield (
        "bundle_is_a_terabyte",
        malformed("at most", lacking(SIGNATURE_NAME), special={"sparse": {SIGNATURE_NAME: terabyte}}),
    )


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _is_changed()
    yield from _is_mixed()
    yield from _is_missing()
    yield from _is_no_file()
    yield from _is_huge()
