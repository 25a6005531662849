"""The optimiser: nevergrad's COBYLA, behind one generator. Nothing else knows nevergrad.

The paper takes ``NGOpt``, which chooses an algorithm by the number of weights and of steps. Up to about 60 steps per
weight it chooses COBYLA (Powell 1994), which needs no gradient and draws nothing at random. Beyond, it chooses a
meta-model, which nevergrad 1.0.12 cannot run with numpy 2.4. So we name the one that runs at the paper's 40 steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

from lora_hub.extras import needs_nevergrad

ALGORITHM = "Cobyla"
_WORD = 2**32  # numpy's legacy generator takes a seed in words of 32 bits

Proposals = Generator[tuple[float, ...], float, None]


def check_installed() -> None:
    """Raise `MissingExtraError` if nevergrad is not installed."""
    with _in_silence(), needs_nevergrad("searching weights"):
        import nevergrad  # noqa: F401


def proposals(start: Sequence[float], *, bound: float, budget: int, seed: int) -> Proposals:
    """Yield *budget* times the weights to try next; send what their loss is, a finite number.

    Args:
        start: The weights to try first.
        bound: The largest absolute value of a weight.
        budget: How many are tried.
        seed: Of what the optimiser draws at random, if it does.
    """
    with _in_silence():
        import nevergrad

        space = nevergrad.p.Array(init=list(start), lower=-bound, upper=bound)
        space.random_state.seed([seed % _WORD, seed // _WORD])
        optimiser = nevergrad.optimizers.registry[ALGORITHM](parametrization=space, budget=budget)
    for _ in range(budget):
        with _in_silence():
            candidate = optimiser.ask()
        loss = yield tuple(candidate.value.tolist())
        with _in_silence():
            optimiser.tell(candidate, loss)


@contextmanager
def _in_silence() -> Iterator[None]:
    """Of the packages that nevergrad is built on, some warn about others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"nevergrad|scipy|cma|sklearn|bayes_opt|pandas|directsearch")
        yield
