"""What can be wrong with ``adapter_model.safetensors``; manifest and signature are right for it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from adapter_files import Tensor, join_header, lora_key, pack, safetensors
from vectors.making.case import Case, malformed, refused
from vectors.making.published import HIDDEN, Files, Q, V, adapter, pair, signed, tensor, version

TENSORS = adapter().tensors
CONTENT = b"".join(entry.content for entry in TENSORS.values())
Q_A, Q_B, V_A = lora_key(Q, "A"), lora_key(Q, "B"), lora_key(V, "A")
Header = dict[str, Any]


def header() -> Header:
    """Return the header of the sane file."""
    file = safetensors(TENSORS, {"format": "pt"})
    return json.loads(file[8 : 8 + struct.unpack("<Q", file[:8])[0]])


def raw(content: bytes) -> Files:
    """Return the version with *content* for weights."""
    return signed(version(weights=content))


def text(header_text: bytes, content: bytes = CONTENT) -> Files:
    """Return the version whose weights have *header_text* for a header."""
    return raw(struct.pack("<Q", len(header_text)) + header_text + content)


def headed(document: object, content: bytes = CONTENT) -> Files:
    """Return the version whose weights have the header *document*."""
    return raw(join_header(document, content))


def entry(**changes: Any) -> Files:
    """Return the version whose header says something else of the first tensor."""
    document = header()
    document[Q_A] |= changes
    return headed(document)


def of(tensors: dict[str, Tensor], **config: Any) -> Files:
    """Return the version of an adapter with *tensors*."""
    made = adapter(**config)
    made.tensors = tensors
    return signed(version(made))


def _is_no_safetensors() -> Iterator[tuple[str, Case]]:
    plain = json.dumps(header()).encode()
    yield "file_has_four_bytes", malformed("truncated", raw(b"\x08\0\0\0"))
    yield "header_is_longer_than_the_file", malformed("header claims", raw(struct.pack("<Q", 10_000) + plain))
    yield "header_has_2_to_the_63_bytes", malformed("header claims", raw(struct.pack("<Q", 2**63) + plain))
    yield "header_has_17_megabytes", malformed("header claims", raw(struct.pack("<Q", 17 * 2**20) + plain))
    yield "header_is_empty", malformed("must begin with", text(b""))
    yield "header_begins_with_a_space", malformed("must begin with", text(b" " + plain))
    yield "header_ends_with_a_new_line", malformed("must begin with", text(plain + b"\n"))
    yield "header_is_an_array", malformed("must begin with", headed([header()]))
    yield "header_is_cut_off", refused(8, "not valid JSON", text(plain[:-20] + b"}"))
    yield "header_is_not_utf8", refused(8, "not valid JSON", text(plain.replace(b"lora_A", b"lora_\xe4", 1)))
    yield "header_is_two_documents", refused(8, "not valid JSON", text(plain + b"{}"))
    yield "header_is_too_deep", refused(8, "nested deeper", headed({**header(), Q_A: _nested(20)}))
    pickle = b"\x80\x04cbuiltins\nopen\n(\x8c\x05owned\x8c\x01wtR."
    yield "file_is_a_pickle", malformed("header claims", raw(pickle + bytes(64)))
    yield "file_is_an_archive", malformed("header claims", raw(b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(64)))
    name = json.dumps(Q_A).encode()
    again = plain.replace(b"{" + name, b"{" + name + b": " + json.dumps(header()[Q_A]).encode() + b", " + name)
    again = again if again != plain else plain[:-1] + b", " + name + b": " + json.dumps(header()[Q_A]).encode() + b"}"
    yield "tensor_stands_twice", refused(8, "stands twice", text(again))


def _nested(depth: int) -> object:
    return [_nested(depth - 1)] if depth else 0


def _has_a_bad_entry() -> Iterator[tuple[str, Case]]:
    yield "entry_is_a_list", malformed("is malformed", headed({**header(), Q_A: [0, 16]}))
    yield "entry_has_an_unknown_field", malformed("is malformed", entry(strides=[4, 1]))
    yield (
        "dtype_is_missing",
        malformed("is malformed", headed({**header(), Q_A: {"shape": [1, 4], "data_offsets": [0, 16]}})),
    )
    yield "dtype_is_unknown", malformed("has dtype", entry(dtype="F31"))
    yield "dtype_is_an_integer", malformed("has dtype", entry(dtype="I32"))
    yield "dtype_is_float8", malformed("has dtype", entry(dtype="F8_E4M3", shape=[4, 4]))
    yield "dtype_has_an_escape_sequence", malformed("\\u001b", entry(dtype="\x1b[31mF32"))
    yield "shape_is_negative", malformed("is malformed", entry(shape=[-1, -4]))
    yield "shape_holds_a_fraction", malformed("is malformed", entry(shape=[1.0, 4]))
    yield "shape_holds_true", malformed("is malformed", entry(shape=[True, 4]))
    yield "shape_overflows_64_bits", malformed("is malformed", entry(shape=[2**62, 2**62]))
    yield "shape_multiplies_to_nothing", malformed("is malformed", entry(shape=[2**63, 2]))
    yield "shape_has_9_axes", malformed("is malformed", entry(shape=[1] * 8 + [4]))
    yield "shape_needs_more_bytes", malformed("needs 20 bytes", entry(shape=[1, 5]))
    yield "shape_needs_fewer_bytes", malformed("needs 12 bytes", entry(shape=[1, 3]))
    yield "offsets_fall", malformed("needs 16 bytes", entry(data_offsets=[16, 0]))
    yield "offsets_are_negative", malformed("is malformed", entry(data_offsets=[-16, 0]))
    yield "offsets_are_three", malformed("is malformed", entry(data_offsets=[0, 8, 16]))
    yield (
        "offsets_are_those_of_another",
        malformed("without gap or overlap", entry(data_offsets=header()[Q_B]["data_offsets"])),
    )
    end = len(CONTENT)
    yield "offsets_go_beyond_the_file", malformed("without gap or overlap", entry(data_offsets=[end, end + 16]))


def _hides_bytes() -> Iterator[tuple[str, Case]]:
    shifted = {key: _shifted(value, 4) if key != "__metadata__" else value for key, value in header().items()}
    yield "gap_before_the_first", malformed("without gap or overlap", headed(shifted, bytes(4) + CONTENT))
    last = max((key for key in TENSORS), key=lambda key: header()[key]["data_offsets"])
    gapped = {**header(), last: _shifted(header()[last], 4)}
    split = header()[last]["data_offsets"][0]
    yield (
        "gap_between_tensors",
        malformed("without gap or overlap", headed(gapped, CONTENT[:split] + bytes(4) + CONTENT[split:])),
    )
    yield (
        "bytes_after_the_last",
        malformed("its header describes", headed(header(), CONTENT + b"PK\x05\x06" + bytes(18))),
    )
    yield "bytes_are_missing", malformed("its header describes", headed(header(), CONTENT[:-4]))
    long = {**header(), "__metadata__": {"format": "pt", "payload": "x" * 64 * 1024}}
    yield "metadata_is_too_long", malformed("the metadata", headed(long))
    yield "metadata_holds_a_number", malformed("the metadata", headed({**header(), "__metadata__": {"format": 1}}))
    yield "metadata_is_a_list", malformed("the metadata", headed({**header(), "__metadata__": ["pt"]}))


def _shifted(info: Header, by: int) -> Header:
    return {**info, "data_offsets": [offset + by for offset in info["data_offsets"]]}


def _has_a_bad_tensor() -> Iterator[tuple[str, Case]]:
    nothing = {**header(), "base_model.model.extra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    yield "tensor_is_empty", malformed("is empty", headed(nothing))
    wide = {**header(), "base_model.model.extra": {"dtype": "F32", "shape": [0, 2**47], "data_offsets": [0, 0]}}
    yield "tensor_is_empty_and_wide", malformed("is empty", headed(wide))
    for dtype, number in (("F32", float("nan")), ("F16", float("inf")), ("BF16", float("-inf")), ("F64", float("nan"))):
        word = "nan" if number != number else "infinite"  # noqa: PLR0124
        name = f"value_is_{word}_in_{dtype.lower()}"
        bad = {Q_A: tensor(1, HIDDEN, dtype=dtype, number=number)}
        made = {**adapter(dtype=dtype).tensors, **bad}
        lora = {"dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}[dtype]}
        yield name, malformed("NaN or infinity", signed(version(_with(made), lora=lora)))
    numbers = [0.5, 0.25, float("nan"), 0.125]
    one = Tensor(dtype="F32", shape=(1, 4), content=pack(numbers, "F32"))
    yield "one_value_is_nan", malformed("NaN or infinity", of({**TENSORS, V_A: one}))


def _with(tensors: dict[str, Tensor]) -> Any:
    made = adapter()
    made.tensors = tensors
    return made


def _has_a_bad_name() -> Iterator[tuple[str, Case]]:
    purposeless = "must be either LoRA or"
    extra = tensor(4)
    yield "name_escapes_root", malformed(purposeless, of({**TENSORS, "../../etc/cron.d/x": extra}))
    yield "name_has_an_escape_sequence", malformed("\\u001b[2J", of({**TENSORS, "x\x1b[2J\x07\r\x9b": extra}))
    yield "name_is_written_backwards", malformed("\\u202e", of({**TENSORS, f"{Q}\u202e.lora_A.weight": extra}))
    yield "name_has_a_null_byte", malformed("\\u0000", of({**TENSORS, f"{Q}.lora_A.weight\0": extra}))
    yield "name_has_513_characters", malformed("name of 513 characters", of({**TENSORS, "x" * 513: extra}))
    yield "name_has_40_components", malformed(purposeless, of({**TENSORS, "a." * 40 + "lora_A.weight": extra}))
    yield (
        "name_has_an_empty_component",
        malformed(purposeless, of({**TENSORS, "base_model.model.layers..q_proj.lora_A.weight": extra})),
    )
    yield "name_is_empty", malformed(purposeless, of({**TENSORS, "": extra}))


def _is_no_adapter() -> Iterator[tuple[str, Case]]:
    yield "tensors_are_none", malformed("no LoRA tensors", of({}, target_modules=[]))
    yield (
        "lora_A_is_missing",
        malformed("lora_A.weight` is missing", of({k: t for k, t in TENSORS.items() if k != Q_A})),
    )
    yield (
        "lora_B_is_missing",
        malformed("lora_B.weight` is missing", of({k: t for k, t in TENSORS.items() if k != Q_B})),
    )
    yield "target_is_missing", malformed("has no tensor for it", of(pair(Q)))
    yield "tensor_is_of_no_target", malformed("belong to no entry", of(TENSORS, target_modules=["q_proj"]))
    yield (
        "tensor_is_of_the_base",
        malformed("a weight of the base", of({**TENSORS, f"base_model.model.{Q}.base_layer.weight": tensor(4, 4)})),
    )
    yield (
        "tensor_replaces_a_module",
        malformed("must be either LoRA or", of({**TENSORS, "base_model.model.classifier.weight": tensor(3, 4)})),
    )
    yield (
        "tensor_is_of_dora",
        malformed("DoRA", of({**TENSORS, f"base_model.model.{Q}.lora_magnitude_vector": tensor(4)})),
    )
    yield (
        "tensor_is_a_bias",
        malformed("must be either LoRA or", of({**TENSORS, f"base_model.model.{Q}.lora_B.bias": tensor(4)})),
    )
    yield (
        "tensor_has_two_names",
        malformed("are the same parameter", of({**TENSORS, f"{Q}.lora_A.weight": TENSORS[Q_A]})),
    )
    yield "rank_is_not_that_of_the_config", malformed("expected [2, in]", of(TENSORS, r=2))
    yield "ranks_of_A_and_B_differ", malformed("expected [1, in]", of({**TENSORS, Q_B: tensor(4, 2)}))
    yield "A_is_flat", malformed("expected two matrices", of({**TENSORS, Q_A: tensor(4)}))
    yield "B_is_a_convolution", malformed("expected two matrices", of({**TENSORS, Q_B: tensor(4, 1, 1)}))
    yield "A_and_B_are_transposed", malformed("expected [1, in]", of({**TENSORS, Q_A: tensor(4, 1), Q_B: tensor(1, 4)}))


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _is_no_safetensors()
    yield from _has_a_bad_entry()
    yield from _hides_bytes()
    yield from _has_a_bad_tensor()
    yield from _has_a_bad_name()
    yield from _is_no_adapter()
