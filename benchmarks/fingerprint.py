"""What the fingerprint of a base costs, and which changes of a base it finds.

    python -m benchmarks.fingerprint [--trials 200] [--threads 1] [--layers 32]

Times are of modules in the shapes of an 8B model with weights of their own (of all seven projections, eight layers'
worth of weights stand for all). The changes are made to 64 random matrices of 512 x 512, normal with a deviation of
0.02 as transformers are initialised: 6,500 of 16.8 million weights are sampled in 16 bits, 3,600 in 32. A step of
AdamW has Gaussian gradients; its first one changes every weight by the learning rate. A trial is one random change, and
what is printed is how many of them a comparison calls another base.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lora_hub.documents.fields import Fields, canonical_json
from lora_hub.documents.fingerprint import Fingerprint
from lora_hub.patch.fingerprint import compare_with_model, fingerprint_of

LLAMA_8B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
MATRICES, WIDTH, DEVIATION = 64, 512, 0.02
FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NARROWER = [("float32", "bfloat16"), ("float32", "float16"), ("float16", "bfloat16"), ("bfloat16", "float16")]

Weights = list[Tensor]
Change = Callable[[Weights, torch.Generator], None]


def layer(weight: Tensor) -> nn.Linear:
    """Return a module of *weight* ``[out, in]``."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def modules(weights: Weights) -> dict[str, nn.Module]:
    """Return a model of *weights*, by path."""
    return {f"layers.{number}.q_proj": layer(weight) for number, weight in enumerate(weights)}


def shaped(layers: int, projections: int, own: int) -> dict[str, nn.Module]:
    """Return the first *projections* of an 8B model; only *own* layers have weights of their own."""
    found: dict[str, nn.Module] = {}
    for number in range(layers):
        for name, shape in list(LLAMA_8B.items())[:projections]:
            earlier = found.get(f"model.layers.{number % own}.{name}")
            weight = torch.empty(shape, dtype=torch.bfloat16).normal_(0, DEVIATION) if earlier is None else None
            shared = earlier.weight.detach() if isinstance(earlier, nn.Linear) else weight
            assert shared is not None
            found[f"model.layers.{number}.{name}"] = layer(shared)
    return found


def timed(action: Callable[[], object], rounds: int = 9) -> tuple[float, float]:
    """Return the milliseconds of the first call, and the median of those after it."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(1000 * (time.perf_counter() - start))
    return times[0], statistics.median(times[1:])


def costs(layers: int) -> Iterator[str]:
    """Yield the rows of the table of sizes and times."""
    fingerprint_of(modules([torch.randn(64, 64)]))  # torch's own first time
    for projections, own in ((2, layers), (4, layers), (7, 8)):
        model = shaped(layers, projections, own)
        base = fingerprint_of(model)
        assert base is not None
        content = canonical_json({"fingerprint": base.to_json()})
        record = timed(lambda model=model: fingerprint_of(model))  # type: ignore[misc]
        compare = timed(lambda model=model, base=base: compare_with_model(base, model))  # type: ignore[misc]
        parse = timed(lambda content=content: Fingerprint.parse(Fields(json.loads(content)["fingerprint"])))  # type: ignore[misc]
        numbers = (record[0], record[1], compare[0], compare[1], parse[1])
        yield f"| {len(model)} | {base.count:,} | {len(content):,} | " + " | ".join(f"{n:.1f}" for n in numbers) + " |"


def step(rate: float, steps: int = 1, which: slice = slice(None)) -> Change:
    """Return *steps* of AdamW on the matrices *which*, in float32, whatever the weights are rounded to afterwards."""

    def change(weights: Weights, generator: torch.Generator) -> None:
        for weight in weights[which]:
            master, first, second = weight.float(), torch.zeros(weight.shape), torch.zeros(weight.shape)
            for number in range(1, steps + 1):
                gradient = torch.randn(weight.shape, generator=generator)
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                size = (second / (1 - 0.999**number)).sqrt_().add_(1e-8)
                master.mul_(1 - 0.01 * rate).addcdiv_(first / (1 - 0.9**number), size, value=-rate)
            weight.copy_(master)

    return change


def redraw(rows: int, columns: int = WIDTH, matrices: int = 1) -> Change:
    """Return the change that draws some weights of some *matrices* anew."""

    def change(weights: Weights, generator: torch.Generator) -> None:
        for number in torch.randperm(MATRICES, generator=generator)[:matrices].tolist():
            for row in torch.randperm(WIDTH, generator=generator)[:rows].tolist():
                start = int(torch.randint(WIDTH - columns + 1, (1,), generator=generator))
                fresh = torch.randn(columns, generator=generator) * DEVIATION
                weights[number][row, start : start + columns] = fresh.to(weights[number].dtype)

    return change


CHANGES: dict[str, Change] = {
    "all matrices, one step at 1e-5": step(1e-5),
    "all matrices, one step at 1e-6": step(1e-6),
    "all matrices, one step at 1e-7": step(1e-7),
    "all matrices, one step at 1e-8": step(1e-8),
    "one matrix, one step at 1e-5": step(1e-5, which=slice(5, 6)),
    "one matrix, one step at 1e-6": step(1e-6, which=slice(5, 6)),
    "one matrix, one step at 1e-7": step(1e-7, which=slice(5, 6)),
    "one matrix drawn anew": redraw(WIDTH),
    "51 rows of one matrix drawn anew (10%)": redraw(51),
    "5 rows of one matrix drawn anew (1%)": redraw(5),
    "one row of one matrix drawn anew": redraw(1),
    "one row of every matrix drawn anew": redraw(1, matrices=MATRICES),
    "one weight of every matrix drawn anew": redraw(1, 1, MATRICES),
}


def base_of(seed: int, dtype: torch.dtype) -> Weights:
    """Return the matrices of one random base."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(WIDTH, WIDTH, generator=generator) * DEVIATION).to(dtype) for _ in range(MATRICES)]


def found(recorded: torch.dtype, seen: torch.dtype, change: Change, trials: int) -> float:
    """Return the share of *trials* in which a changed base, *seen* in one dtype, is called another one."""
    weights = base_of(0, torch.float32 if recorded is torch.float32 else recorded)
    base = fingerprint_of(modules(weights))
    assert base is not None
    count = 0
    for trial in range(trials):
        changed = [weight.clone() for weight in weights]
        change(changed, torch.Generator().manual_seed(trial))
        count += compare_with_model(base, modules([weight.to(seen) for weight in changed])).is_other
    return count / trials


def correlations(codes: Callable[[Tensor], Tensor]) -> str:
    """Return what quantised weights of the right and of another base have in common with the fingerprint."""
    base = fingerprint_of(modules(base_of(0, torch.bfloat16)))
    assert base is not None
    seen = [compare_with_model(base, modules([codes(w) for w in base_of(seed, torch.float32)])) for seed in (0, 1)]
    return " | ".join(f"{verdict.outcome}, {verdict.correlation:.3f}" for verdict in seen)


def integers(largest: int) -> Callable[[Tensor], Tensor]:
    """Return codes from -largest to largest, with a scale for each row."""
    return lambda weight: (weight / weight.abs().amax(1, keepdim=True) * largest).round().to(torch.int8)


def main() -> None:
    """Run everything and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{os.cpu_count()} cores, {arguments.threads} threads, {platform.machine()}, torch {torch.__version__}.")
    print("\n| tensors | weights | bytes of JSON | record, first ms | again | compare, first ms | again | parse ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in costs(arguments.layers):
        print(row, flush=True)
    print(f"\n| change | {' | '.join(FLOATS)} |")
    print("| --- | --- | --- | --- |")
    for name, change in CHANGES.items():
        trials = min(arguments.trials, 20) if name.startswith("all") else arguments.trials
        rates = [f"{found(dtype, dtype, change, trials):.1%}" for dtype in FLOATS.values()]
        print(f"| {name} | {' | '.join(rates)} |", flush=True)
    print("\n| recorded, seen in | a step at 1e-5 | at 1e-6 | at 1e-7 | at 1e-8 | 100 at 1e-8 |")
    print("| --- | --- | --- | --- | --- | --- |")
    changes = (step(1e-5), step(1e-6), step(1e-7), step(1e-8), step(1e-8, 100))
    for one, other in NARROWER:
        rates = [f"{found(FLOATS[one], FLOATS[other], change, 5):.0%}" for change in changes]
        print(f"| {one}, {other} | {' | '.join(rates)} |", flush=True)
    print("\n| quantised | the right base | another one |")
    print("| --- | --- | --- |")
    print(f"| int8, a scale for each row | {correlations(integers(127))} |")
    print(f"| int4 codes in int8 | {correlations(integers(7))} |")
    print(f"| float8_e4m3fn | {correlations(lambda weight: weight.mul(1000).to(torch.float8_e4m3fn))} |")


if __name__ == "__main__":
    main()
