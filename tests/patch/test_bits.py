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


def test_checksum_is_that_of_the_values(monkeypatch):
    """A view, a transposed tensor and another chunk size give the checksum of the same values laid out plainly."""
    tensor = torch.randn(40, 31).bfloat16()
    plain, transposed, offset = checksum(tensor.T.contiguous()), checksum(tensor.T), checksum(tensor.flatten()[3:])
    monkeypatch.setattr("lora_hub.patch.bits._CHUNK", 5)

    assert plain == transposed == checksum(tensor.T)
    assert offset == checksum(tensor.flatten()[3:].clone())


def test_digest_depends_on_names_and_dtypes():
    """The same bits under another name, or read as another dtype, are another state."""
    zeros = torch.zeros(4)

    assert len({digest([("a", zeros)]), digest([("b", zeros)]), digest([("a", zeros.view(torch.int32))])}) == 3
