"""Adapters that are composed were trained on one base: their fingerprints say so, or that they were not."""

from dataclasses import replace

import pytest
import torch
from made_adapters import BASE, SHAPES, Q, V, adapter, composed, random_factors

from lora_hub.errors import CompatibilityError
from lora_hub.sampling import fingerprint_of_weights


def weights(seed: int) -> dict[str, torch.Tensor]:
    """Return the weights of the base of *seed*, by path."""
    generator = torch.Generator().manual_seed(seed)
    return {path: torch.randn(shape, generator=generator) for path, shape in SHAPES.items()}


def trained_on(seed: int, *paths: str, dtype: torch.dtype = torch.float32):
    """Return an adapter of *paths*, trained on the base of *seed*."""
    known = {path: weight.to(dtype) for path, weight in weights(seed).items() if path in paths}
    base = replace(BASE, fingerprint=fingerprint_of_weights(known))
    return adapter({path: random_factors(3, SHAPES[path], 2) for path in paths}, base=base)


def test_what_all_say_is_kept():
    """Two of one base, one of them in bfloat16: the finer one stays."""
    one, other = trained_on(1, Q, V), trained_on(1, Q, V, dtype=torch.bfloat16)
    made, _ = composed({"a": (other, 1.0), "b": (one, 1.0)})

    assert made.manifest.base.fingerprint == one.manifest.base.fingerprint


def test_each_module_keeps_its_own():
    """One adapts q, the other v: together they have both."""
    made, _ = composed({"a": (trained_on(1, Q), 1.0), "b": (trained_on(1, V), 1.0)})

    assert made.manifest.base.fingerprint == trained_on(1, Q, V).manifest.base.fingerprint


def test_one_alone_keeps_it():
    """Scaled by a half, it is of the same base."""
    one = trained_on(1, Q, V)

    assert composed({"a": (one, 0.5)})[0].manifest.base == one.manifest.base


def test_different_bases_are_refused():
    """By both names and a weight in which they differ; of siblings that are composed on purpose, nothing is claimed."""
    inputs = {"a": (trained_on(1, Q, V), 1.0), "b": (trained_on(2, Q, V), 1.0)}
    with pytest.raises(CompatibilityError, match=r"`a` and `b` were trained on bases with different weights: `model"):
        composed(inputs)
    made, _ = composed(inputs, allow_other_base=True)

    assert made.manifest.base.fingerprint is None


def test_an_input_without_one_contradicts_nobody():
    """As every adapter that PEFT wrote."""
    one, silent = trained_on(1, Q, V), adapter({Q: random_factors(5, SHAPES[Q], 2)})
    made, _ = composed({"a": (silent, 1.0), "b": (one, 1.0)})

    assert made.manifest.base.fingerprint == one.manifest.base.fingerprint
