"""Change a document as an accident or an attacker would: byte by byte, and by what its format means.

Every function gets its randomness as an argument: the same seed makes the same change on every machine.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from adapter_files import join_header
from json_places import places, replaced, without

# A mutation returns what it makes of the content; it may splice in a part of one of the seeds.
Mutation = Callable[[bytes, Sequence[bytes], Random], bytes]

_SPREAD = 4  # times as many mutations of one as of three at once
_RAW = "@@raw@@"  # stands for a text that `json.dumps` would not write
_DEPTHS = (1, 15, 17, 200, 1500, 100_000)
_DOTS = (1, 15, 17, 200, 1500)  # of a key of TOML, each of which takes time and memory for all before it
_TOKENS = (
    b"\0", b"\n", b"\r", b" ", b'"', b"\\", b",", b":", b"{", b"}", b"[", b"]", b"=", b"#", b"'''", b'"""', b"null",
    b"true", b"1e999", b"-", b".", b"NaN", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\\u0000",
    b"\x1b[2J", b"\x7f", "\N{RIGHT-TO-LEFT OVERRIDE}".encode(), "e\N{COMBINING ACUTE ACCENT}".encode(),
)  # fmt: skip
_TEXTS = (
    "", " ", "\0", "\n", "\x1b[2J", "\x7f", "\N{RIGHT-TO-LEFT OVERRIDE}", "\N{SNOWMAN}", "a" * 300, "a" * 70_000, "..",
    "/", "../../trust.toml", "adapter_model.bin", "LORA-HUB.JSON", "model.sig", "model.0123abcd.sig", "README.md",
    ".git", "*", "org/task", "Org/Task", "org/*", "org/", "org/task@1.2.0", "1.2.0", "1.2", "01.2.0", "1.2.0+build",
    "2.0.0-rc.1", "v1.2.0", "0" * 64, "A" * 64, "0" * 40, "sha256:" + "0" * 64, "sha512:" + "0" * 64, "sha256", "sha1",
    "files", "shards", "2026-01-31T12:00:00Z", "2026-02-30T12:00:00Z", "9999-12-31T23:59:59Z", "AA==", "AB==", "A A=", "hf://",
    "F32", "I8", "__metadata__", "LORA", "(a+)+$", "lora-hub/manifest/v1", "lora-hub/manifest/v2", "lora-hub/seen/v2",
    "alice", "bob",
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 8, 16, 255, 2**16, 2**31, 2**32, 2**48, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, -(10**400), 0.5,
    -0.0, 1e-300, 1e30, 1e31, 1.5e308,
)  # fmt: skip
_PLAIN = (None, True, False, [], {}, [[]], [None], [{}], {"": None}, {"a": {"b": {"c": []}}}, [0, 1], [1, 0])


def mutations(*kinds: Mutation) -> Mutation:
    """Return the mutation that applies one to three of *kinds*, or of those of bytes, one after the other."""

    def mutate(content: bytes, seeds: Sequence[bytes], numbers: Random) -> bytes:
        for _ in range(numbers.choice([1] * _SPREAD + [2, 2, 3])):
            change = numbers.choice(kinds if kinds and numbers.random() < 2 / 3 else BYTES)
            content = change(content, seeds, numbers)
        return content

    return mutate


def _range(content: Sequence[Any], numbers: Random, longest: int = 64) -> tuple[int, int]:
    start = numbers.randint(0, len(content))
    return start, min(len(content), start + numbers.randint(1, longest))


# Bytes


def flip_bit(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Flip one bit."""
    if not content:
        return content
    bit = numbers.randrange(8 * len(content))
    return flipped(content, bit)


def flipped(content: bytes, bit: int) -> bytes:
    """Return *content* with the one *bit* changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def set_bytes(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Put random bytes in the place of some."""
    start, stop = _range(content, numbers, 8)
    return content[:start] + numbers.randbytes(stop - start) + content[stop:]


def insert_token(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Insert something that a parser may stumble over."""
    start = numbers.randint(0, len(content))
    return content[:start] + numbers.choice(_TOKENS) + content[start:]


def remove_bytes(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Remove some bytes."""
    start, stop = _range(content, numbers)
    return content[:start] + content[stop:]


def repeat_bytes(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Have some bytes stand there several times."""
    start, stop = _range(content, numbers)
    return content[:start] + content[start:stop] * numbers.choice((2, 3, 200)) + content[stop:]


def exchange_bytes(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Have two runs of bytes change places."""
    (a, b), (c, d) = sorted((_range(content, numbers), _range(content, numbers)))
    return content if b > c else content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def cut_off(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Keep only the beginning, or only the end."""
    position = numbers.randint(0, len(content))
    return content[:position] if numbers.random() < 2 / 3 else content[position:]


def splice(content: bytes, seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Go on with the end of a seed."""
    other = numbers.choice(seeds)
    return content[: numbers.randint(0, len(content))] + other[numbers.randint(0, len(other)) :]


BYTES = (flip_bit, flip_bit, set_bytes, insert_token, remove_bytes, repeat_bytes, exchange_bytes, cut_off, splice)


# Lines


def change_lines(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Repeat, remove or move some lines: in JSON that makes keys that stand twice, in TOML tables that do."""
    lines = content.splitlines(keepends=True)
    start, stop = _range(lines, numbers, 12)
    chosen, left = lines[start:stop], lines[:start] + lines[stop:]
    place = numbers.randint(0, len(left))
    match numbers.randrange(3):
        case 0:
            left = lines
        case 1:
            chosen = []
    return b"".join([*left[:place], *chosen, *left[place:]])


# JSON


def change_json(content: bytes, seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Change one value or key of the JSON document *content*; what is none any more is changed byte by byte."""
    try:
        document = json.loads(content)
        here = list(places(document))
    except (ValueError, RecursionError):
        return numbers.choice(BYTES)(content, seeds, numbers)
    if not here:
        return numbers.choice(BYTES)(content, seeds, numbers)
    place, raw = numbers.choice(here), _raw(numbers)
    match numbers.randrange(6):
        case 0:
            document = without(document, place)
        case 1:
            document = replaced(document, place, _value(document, here, numbers))
        case 2:
            document = replaced(document, place, _RAW)
        case 3:
            document = _with_key(document, place[:-1], numbers)
        case 4:
            document = replaced(document, place, _altered(_at(document, place), numbers))
        case 5:
            document = _renamed(document, place, numbers)
    return _spelled(document, numbers).replace(json.dumps(_RAW), raw).encode(errors="surrogatepass")


def respell_json(content: bytes, seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Write the same JSON document in another way."""
    try:
        return _spelled(json.loads(content), numbers).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return numbers.choice(BYTES)(content, seeds, numbers)


def _spelled(document: object, numbers: Random) -> str:
    indent, separators = numbers.choice(((2, None), (None, (",", ":")), (None, None), (0, (" ,", ": "))))
    is_ascii, is_sorted = numbers.random() < 1 / 2, numbers.random() < 1 / 2
    return json.dumps(document, indent=indent, separators=separators, ensure_ascii=is_ascii, sort_keys=is_sorted)


def _raw(numbers: Random) -> str:
    """Return a value that `json.dumps` would not write: legal or not."""
    depth = numbers.choice(_DEPTHS)
    return numbers.choice(
        (
            "NaN", "-Infinity", "1e999", "-1e999", "1.0", "1E0", "-0", "00", "+1", "0x10", ".5", "9" * 4000, "9" * 5000,
            "1" + "0" * 100 + "e-100", '"\\ud800"', '"\\u0000"', '"\\/"', "'a'", "[" * depth + "]" * depth,
            '{"a":' * depth + "1" + "}" * depth, '{"a":1,"a":1}', "[1,]", "", "undefined",
        )
    )  # fmt: skip


def _value(document: object, here: Sequence[tuple[Any, ...]], numbers: Random) -> object:
    """Return any value: an odd one, or one that stands elsewhere in *document*."""
    match numbers.randrange(4):
        case 0:
            return numbers.choice(_TEXTS)
        case 1:
            return numbers.choice(_NUMBERS)
        case 2:
            return numbers.choice(_PLAIN)
    return _at(document, numbers.choice(here))


def _altered(value: object, numbers: Random) -> object:
    """Return a value that is only a little different from *value*."""
    match value:
        case bool():
            return not value
        case int() | float():
            return numbers.choice(
                (value + 1, value - 1, -value, value * 2, float(value) if abs(value) < 2**60 else 0, str(value))
            )
        case str():
            return _altered_text(value, numbers)
        case list():
            return numbers.choice((value * 2, value[:-1], value[::-1], [*value, None], {"0": value}))
        case dict():
            return numbers.choice(({}, [value], {key.upper(): item for key, item in value.items()}))
    return 0


def _altered_text(text: str, numbers: Random) -> str:
    position = numbers.randint(0, len(text))
    other = numbers.choice("0aZ/.@=\0 \x1b\N{SNOWMAN}")
    return numbers.choice(
        (
            text.upper(),
            text.lower(),
            text[::-1],
            text[:-1],
            f" {text}",
            f"{text}\n",
            text[:position] + other + text[position + 1 :],
        )
    )


def _with_key(document: Any, place: tuple[Any, ...], numbers: Random) -> Any:
    outer, value = _at(document, place), numbers.choice((*_PLAIN, *_TEXTS, *_NUMBERS))
    if isinstance(outer, dict):
        changed = {**outer, numbers.choice((*_TEXTS, *_keys(document))): value}
    else:
        changed = [*outer, numbers.choice((value, *outer))]
    return replaced(document, place, changed) if place else changed


def _renamed(document: Any, place: tuple[Any, ...], numbers: Random) -> Any:
    outer, old = _at(document, place[:-1]), place[-1]
    if not isinstance(outer, dict):
        return document
    new = numbers.choice((_altered_text(old, numbers), *_keys(document)))
    changed = {new if key == old else key: value for key, value in outer.items()}
    return replaced(document, place[:-1], changed) if place[:-1] else changed


def _keys(document: object) -> list[str]:
    return [place[-1] for place in places(document) if isinstance(place[-1], str)]


def _at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document


# A bundle is JSON, in which there is base64, in which there is JSON


def change_payload(content: bytes, seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Change what is signed, or the signature: the bytes behind the base64."""
    try:
        envelope = json.loads(content)["dsseEnvelope"]
        place, key = numbers.choice(((envelope, "payload"), (envelope["signatures"][0], "sig")))
        inner = base64.b64decode(place[key], validate=True)
        change = numbers.choice((change_json, respell_json) if key == "payload" else BYTES)
        text = base64.b64encode(change(inner, seeds, numbers)).decode()
        return content.replace(place[key].encode(), text.encode()) if place[key] else content
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return numbers.choice(BYTES)(content, seeds, numbers)


# TOML

_ASSIGNED = re.compile(rb"^(\s*[\w.]+\s*=\s*)(.*)$", re.MULTILINE)


def change_toml(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Put another value behind a key, another key before a value, or another table somewhere."""
    found = list(_ASSIGNED.finditer(content))
    if not found or numbers.random() < 1 / 4:
        start = content.find(b"\n", numbers.randint(0, len(content))) + 1
        return content[:start] + _toml_line(numbers).encode() + b"\n" + content[start:]
    match = numbers.choice(found)
    if numbers.random() < 1 / 4:
        other = numbers.choice(found)
        return content[: match.start(1)] + other[1] + content[match.end(1) :]
    value = (
        _toml_value(numbers).encode(errors="surrogatepass") if numbers.random() < 3 / 4 else numbers.choice(found)[2]
    )
    return content[: match.start(2)] + value + content[match.end(2) :]


def _toml_line(numbers: Random) -> str:
    depth, dots = numbers.choice(_DEPTHS), numbers.choice(_DOTS)
    table = numbers.choice(("key", "rule", "revoked", "pin", "version", "other"))
    key = numbers.choice(
        ("name", "scope", "keys", "pem", "digest", "threshold", "not_before", "not_after", "version", "x")
    )
    return numbers.choice(
        (
            f"[[{table}]]", f"[{table}]", f"[{table}", f"{table} = []", f"{table} = {{}}", f"{key}.{key} = 1",
            f"{key} = {_toml_value(numbers)}", f"{table}{'.a' * dots} = 1", f"[{table}{'.a' * dots}]",
            f"{key} = {'[' * depth}{']' * depth}", f"{key} = {'{a=' * depth}1{'}' * depth}", "# a remark", "\t", "\r",
            "\x00", "<<<<<<< ours", "=======",
        )
    )  # fmt: skip


def _toml_value(numbers: Random) -> str:
    text = numbers.choice(_TEXTS)
    return numbers.choice(
        (
            json.dumps(text, ensure_ascii=False), json.dumps(text), f"'{text}'", f'"""\n{text}"""', f"'''{text}'''",
            text, str(numbers.choice(_NUMBERS)), "9" * 5000, "0x7fffffffffffffffff", "1_000", "0b1", "nan", "-inf",
            "1e999", "true", "[]", "{}", '["alice"]', '["alice", "alice"]', '["nobody"]', "[1]", "[[]]",
            '[{ identity = "a", issuer = "b" }]', "1979-05-27T07:32:00Z", "1979-05-27T07:32:00", "1979-05-27",
            "07:32:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "2026-01-01T00:00:00.5+05:30",
            "",
        )
    )  # fmt: skip


# Safetensors: eight bytes of length, JSON, numbers

_LENGTH = 8  # bytes


def change_header(content: bytes, seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Change the header as JSON, and write its new length before it; or lie about the length."""
    length = int.from_bytes(content[:_LENGTH], "little")
    header, numbers_after = content[_LENGTH : _LENGTH + length], content[_LENGTH + length :]
    if numbers.random() < 1 / 8 or length > len(content):
        claimed = numbers.choice(
            (0, 1, length - 1, length + 1, length + 8, len(content), 2**24, 2**25, 2**63, 2**64 - 1)
        )
        return (max(claimed, 0) % 2**64).to_bytes(_LENGTH, "little") + content[_LENGTH:]
    changed = numbers.choice((change_json, change_json, respell_json, change_lines))(header, seeds, numbers)
    changed += b" " * (-len(changed) % 8) if numbers.random() < 3 / 4 else b""
    return len(changed).to_bytes(_LENGTH, "little") + changed + numbers_after


def change_number(content: bytes, _seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Put NaN, infinity, zero or the largest number in the place of one."""
    start = 4 * numbers.randint(0, len(content) // 4)
    value = numbers.choice(
        (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", bytes(4), b"\xff" * 4)
    )
    return content[:start] + value + content[start + 4 :]


def append_tensor(content: bytes, seeds: Sequence[bytes], numbers: Random) -> bytes:
    """Add one tensor more, with its numbers."""
    length = int.from_bytes(content[:_LENGTH], "little")
    try:
        header, after = json.loads(content[_LENGTH : _LENGTH + length]), content[_LENGTH + length :]
        name = numbers.choice((*header, *_TEXTS))
        header[name] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [len(after), len(after) + 16]}
    except (ValueError, TypeError, RecursionError):
        return numbers.choice(BYTES)(content, seeds, numbers)
    return join_header(header, after + bytes(16))


JSON = mutations(change_json, change_json, respell_json, change_lines)
BUNDLE = mutations(change_json, change_payload, change_payload, respell_json, change_lines)
TOML = mutations(change_toml, change_toml, change_lines)
SAFETENSORS = mutations(change_header, change_header, change_number, append_tensor)
