"""Digests and checksums of tensors notice every change of a bit."""

import pytest
import torch

from lora_hub.patch.bits import checksum, digest

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 64, 1001])
def test_checksum_sees_each_bit(dtype, size):
    """Whatever bit of whatever byte is flipped, the checksum is another one; flipped back, it is the same."""
    tensor = torch.randn(size).to(dtype)
    content = tensor.view(torch.uint8)
    before = checksum(tensor)
    for position in {0, len(content) // 2, len(content) - 1}:
        for bit in (1, 128):
            content[position] ^= bit
            assert checksum(tensor) != before
            content[position] ^= bit

    assert checksum(tensor) == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_checksum_sees_an_exchange(dtype):
    """Two values that change places leave the sum alone, and not the sum weighted by position."""
    tensor = torch.arange(24, dtype=torch.float32).to(dtype)

    assert checksum(tensor) != checksum(tensor.flip(0))


SIZES = [(24, 40), (64, 512), (700, 1021)]  # the last one has many strips


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize(
    "change",
    [
        lambda w: w[[1, 0, *range(2, len(w))]],
        lambda w: w[[*range(len(w) - 1), 0]],
        lambda w: w[:, [1, 0, *range(2, w.shape[1])]],
        lambda w: w[:, [-1, *range(1, w.shape[1] - 1), 0]],
        lambda w: w.T,
        lambda w: w.flip(0),
        lambda w: w.flip(1),
        lambda w: w.roll(1),
        lambda w: w.roll(1, 0),
        lambda w: w.roll(4, 1),
        lambda w: -w,
        lambda w: w.nextafter(torch.full_like(w, 9)) if w.dtype is torch.float32 else w * 1.01,
        lambda w: w.view(torch.uint8).flip(0).view(w.dtype),
    ],
)
def test_checksum_sees_a_move(dtype, size, change):
    """Rows or columns that change places, a transposition, a shift, other signs: another checksum."""
    tensor = torch.randn(size).to(dtype)

    assert checksum(change(tensor)) != checksum(tensor)


@pytest.mark.parametrize("distance", [1, 2, 31, 32, 508, 510, 1018, 509 * 32, 509 * 33, 2**16])
def test_checksum_sees_two_words_change_places(distance):
    """Two words anywhere, also if only their highest bits differ: only inside of one column of a strip it is blind."""
    words = torch.randint(-(2**63), 2**63 - 1, (300_000,))
    before = checksum(words)
    for start in range(0, len(words) - distance, 40_009):
        changed = words.clone()
        changed[start], changed[start + distance] = words[start + distance], words[start]
        crosses = start // (32 * 509) != (start + distance) // (32 * 509)

        assert checksum(changed) != before or (distance % 509 == 0 and not crosses)


def test_checksum_is_that_of_the_values():
    """A view and a transposed tensor give the checksum of the same values laid out plainly; a dtype is part of it."""
    tensor = torch.randn(40, 31).bfloat16()

    assert checksum(tensor.T) == checksum(tensor.T.contiguous())
    assert checksum(tensor.flatten()[3:]) == checksum(tensor.flatten()[3:].clone())
    assert checksum(tensor.flatten()[4:]) == checksum(tensor.flatten()[4:].clone())
    assert checksum(torch.zeros(4).half()) != checksum(torch.zeros(4).bfloat16())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_checksum_does_not_depend_on_threads(threads):
    """Sums of integers are exact, in whatever order."""
    tensor, before = torch.randn(1100, 1024, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    torch.set_num_threads(threads)
    found = checksum(tensor).hex()
    torch.set_num_threads(before)

    assert found == checksum(tensor).hex()


def test_digest_depends_on_names_and_dtypes():
    """The same bits under another name, or read as another dtype, are another state."""
    zeros = torch.zeros(4)

    assert len({digest([("a", zeros)]), digest([("b", zeros)]), digest([("a", zeros.view(torch.int32))])}) == 3
