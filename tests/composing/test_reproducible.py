"""Same recipe, same inputs, same bytes: in another process, on other numbers of threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SCRIPT = """
import sys
import torch
from made_adapters import adapter, composed, random_factors

torch.set_num_threads(int(sys.argv[1]))
shape = (512, 384)
made = {f"a{i}": (adapter({"q": random_factors(i, shape, 24)}, dtype=torch.float32), 0.5 - i / 8) for i in range(3)}
for rule, rank, space in [("linear", "16", None), ("ties", "exact", "core"), ("dare-ties", "24", "full"),
                          ("tsv", "exact", None), ("iso", "exact", None), ("della", "max:40", "knots")]:
    for dtype in ("float32", "bfloat16"):
        print(rule, dtype, composed(made, rule=rule, rank=rank, space=space, dtype=dtype, seed=5)[0].digest)
assert torch.get_num_threads() == int(sys.argv[1])
"""


def digests(threads: int) -> str:
    """Return the digests of twelve compositions in a process of its own, on so many threads."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(threads)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def once() -> str:
    return digests(1)


@pytest.mark.parametrize("threads", [1, 2, pytest.param(3, marks=pytest.mark.full)])
def test_same_bytes_on_any_number_of_threads(once, threads):
    """Every rule and space gives the digest that it gave in another process."""
    assert once.count("sha256:") == 12
    assert digests(threads) == once
