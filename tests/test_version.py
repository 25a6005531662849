"""Versions and ranges: Semantic Versioning 2.0, and ranges of releases."""

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.errors import InvalidReferenceError
from lora_hub.version import Version, VersionRange

# https://semver.org, §11.4
RISING = [
    "0.0.0",
    "0.0.1",
    "0.9.0",
    "0.10.0",
    "1.0.0-1",
    "1.0.0-2",
    "1.0.0-10",
    "1.0.0--",
    "1.0.0-0a",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1-0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
    "2.0.0",
    "10.0.0",
]

NUMBERS = st.integers(0, 12) | st.integers(0, 999_999_999)
IDENTIFIERS = NUMBERS.map(str) | st.from_regex(r"[0-9]{0,2}[A-Za-z-][0-9A-Za-z-]{0,3}", fullmatch=True)
VERSIONS = st.builds(Version, NUMBERS, NUMBERS, NUMBERS, st.lists(IDENTIFIERS, max_size=3).map(tuple))


def compare(one: Version, two: Version) -> int:
    """Return the order of two versions, word for word after SemVer §11."""
    for a, b in zip((one.major, one.minor, one.patch), (two.major, two.minor, two.patch), strict=True):
        if a != b:
            return -1 if a < b else 1
    if not one.prerelease or not two.prerelease:
        return bool(two.prerelease) - bool(one.prerelease)
    for a, b in zip(one.prerelease, two.prerelease, strict=False):
        if a != b:
            if a.isdigit() and b.isdigit():
                return -1 if int(a) < int(b) else 1
            if a.isdigit() or b.isdigit():
                return -1 if a.isdigit() else 1
            return -1 if a < b else 1
    return len(one.prerelease) - len(two.prerelease)


@pytest.mark.parametrize(("low", "high"), list(itertools.pairwise(RISING)))
def test_the_order_of_semver(low, high):
    """Versions rise as the specification says."""
    assert Version.parse(low) < Version.parse(high)
    assert Version.parse(high) >= Version.parse(low)


@given(VERSIONS, VERSIONS)
@settings(deadline=None, max_examples=300)
def test_the_order_is_that_of_the_specification(one, two):
    """Any two versions compare as §11 compares them, and are equal exactly when they are neither less nor greater."""
    assert (one < two) == (compare(one, two) < 0)
    assert (one > two) == (compare(one, two) > 0)
    assert (one == two) == (compare(one, two) == 0)


@given(st.lists(VERSIONS, max_size=8))
@settings(deadline=None)
def test_sorting_does_not_depend_on_the_order_before(versions):
    """The order is total: sorted is sorted, wherever one starts."""
    backwards = versions[::-1]

    assert sorted(versions) == sorted(backwards) == sorted(versions, key=functools.cmp_to_key(compare))


@given(VERSIONS)
@settings(deadline=None)
def test_a_version_round_trips(version):
    """What is printed parses as the same version."""
    assert Version.parse(str(version)) == version
    assert Version.parse(str(version)).is_prerelease == bool(version.prerelease)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2",
        "1.2.3.4",
        "v1.2.3",
        "01.2.3",
        "1.02.3",
        "1.2.03",
        "1.2.3-",
        "1.2.3-01",
        "1.2.3-a..b",
        "1.2.3-a.",
        "1.2.3-ä",
        "1.2.3+build",
        "1.2.3-rc.1+build",
        "1.2.3 ",
        " 1.2.3",
        "1.2.3\n",
        "-1.2.3",
        "1.2.x",
        "1.2.3-a/b",
        "1.2.3-..",
        "1.2.3-\x1b",
        "\uff11.2.3",
        "1.2.1234567890",
        "^1.2.3",
    ],
)
def test_what_is_no_version_is_refused(text):
    """Anything but three numbers and a pre-release is refused, with a hint; it is a usage error."""
    with pytest.raises(InvalidReferenceError) as caught:
        Version.parse(text)

    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("1", ["1.0.0", "1.99.99"], ["0.9.9", "2.0.0", "1.5.0-rc.1", "2.0.0-rc.1"]),
        ("1.2", ["1.2.0", "1.2.9"], ["1.1.9", "1.3.0", "1.2.1-rc.1"]),
        ("0", ["0.0.0", "0.9.9"], ["1.0.0"]),
        ("1.2.3", ["1.2.3"], ["1.2.2", "1.2.4"]),
        ("^1", ["1.0.0", "1.9.9"], ["2.0.0", "0.9.9", "2.0.0-rc.1"]),
        ("^1.2", ["1.2.0", "1.9.9"], ["1.1.9", "2.0.0"]),
        ("^1.2.3", ["1.2.3", "1.3.0", "1.99.0"], ["1.2.2", "2.0.0", "1.2.3-rc.1", "1.3.0-rc.1"]),
        ("^0.2", ["0.2.0", "0.2.9"], ["0.3.0", "0.1.9", "1.0.0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.2.2", "0.3.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.2", "0.0.4"]),
        ("^0.0", ["0.0.0", "0.0.9"], ["0.1.0"]),
        ("^0", ["0.0.0", "0.9.0"], ["1.0.0"]),
        ("^0.0.0", ["0.0.0"], ["0.0.1"]),
        ("^999999999", ["999999999.1.0"], ["1.0.0"]),
    ],
)
def test_a_range_holds_releases(text, inside, outside):
    """A prefix holds what begins with it, a caret what is compatible; a pre-release is in no range."""
    versions = VersionRange.parse(text)

    assert [version for version in inside if Version.parse(version) not in versions] == []
    assert [version for version in outside if Version.parse(version) in versions] == []


@given(VERSIONS, st.integers(1, 3), st.booleans())
@settings(deadline=None)
def test_a_range_holds_its_own_beginning(version, length, has_caret):
    """The release that a range spells is in it, a release below is not."""
    numbers = (version.major, version.minor, version.patch)[:length]
    versions = VersionRange.parse("^" * has_caret + ".".join(map(str, numbers)))
    first = Version(*numbers, *[0] * (3 - length))

    assert first in versions
    assert versions.low == first < versions.high
    assert str(versions) == versions.text


@pytest.mark.parametrize(
    "text", ["", "^", "~1.2", ">=1", "1.x", "*", "1.2.3.4", "^1.2.3-rc.1", "1.", ".1", "01", "1 2", "1\n"]
)
def test_what_is_no_range_is_refused(text):
    """Anything but a prefix or a caret with one to three numbers is refused."""
    with pytest.raises(InvalidReferenceError):
        VersionRange.parse(text)
