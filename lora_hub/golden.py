"""Record what a model gives with an adapter, and replay it: where the adapter, the base and the manifest meet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hub.adapter_directory import read_bundles, read_with_files
from lora_hub.api import load
from lora_hub.documents.fields import canonical_json, parse_json_object
from lora_hub.documents.golden import Golden
from lora_hub.documents.manifest import MANIFEST_NAME, MAX_MANIFEST
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError, StateError, UsageError
from lora_hub.extras import needs_torch
from lora_hub.files import machine_errors, write_files
from lora_hub.reference import AdapterRef
from lora_hub.registry.locate import RegistryLike
from lora_hub.replaying.verdict import Replay, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from lora_hub.replaying.run import Inputs, Tokenizer

    Run = Callable[[Sequence[int]], tuple[str, Tensor, Tensor]]

_NAME = "lora-hub.golden"  # of the adapter while it is attached


def record_golden(
    model: nn.Module,
    directory: str | os.PathLike[str],
    inputs: Inputs | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    allow_other_base: bool = False,
) -> Golden:
    """Write into the draft manifest in *directory* what *model* gives with the adapter there, and without it.

    The model runs in evaluation mode; what else is attached to it is off meanwhile, and it is left as it was. Inputs
    are published with the manifest, as ids of tokens: choose none that are private.

    Args:
        model: The base: a language model, an encoder or a text classifier of transformers.
        directory: What `save_adapter` or PEFT's ``save_pretrained`` wrote.
        inputs: Up to 4 texts, of which the first 16 tokens count, or sequences of up to 16 ids; by default the same
            random ids always. On inputs of the adapter's own task, a replay can tell more.
        tokenizer: That of the base, if the inputs are texts.
        allow_other_base: Record it on a sibling of its base.

    Raises:
        StateError: It is published or signed, so its manifest cannot change; or another adapter is merged.
        UsageError: The inputs are no such ones, or the adapter changes none of the outputs.
        CompatibilityError: It does not fit, or the base is quantised or of a kind that does not read tokens.
    """
    with needs_torch("recording golden outputs"):
        from lora_hub.replaying.precision import QUANTISED, dtype_of
        from lora_hub.replaying.run import token_ids
        from lora_hub.replaying.sample import sample
    path = Path(directory)
    adapter, draft = _read_draft(path)
    dtype = dtype_of(model)
    if dtype == QUANTISED:
        raise CompatibilityError("the base is quantised", hint="record golden outputs on the base as it was published")
    sequences = token_ids(model, inputs, tokenizer)
    with _attached(model, adapter, allow_other_base=allow_other_base) as run:
        outputs = [(ids, *run(ids)) for ids in sequences]
    cases = tuple(sample(ids, base, adapted) for ids, _, base, adapted in outputs)
    if not any(case.effect for case in cases):
        raise UsageError(
            "the adapter changes none of the outputs, so a replay could never fail",
            hint="train it first, or pass inputs of its own task",
        )
    golden = Golden(output=outputs[0][1], dtype=dtype, cases=cases)
    with machine_errors():
        write_files(path, {MANIFEST_NAME: canonical_json(draft | {"golden": golden.to_json()})})
    return golden


def _read_draft(directory: Path) -> tuple[VerifiedAdapter, dict[str, object]]:
    """Return the adapter in *directory* and its draft manifest as it stands there, with keys that we do not know."""
    adapter, files = read_with_files(directory)
    if adapter.manifest.name is not None or read_bundles(directory):
        raise StateError(
            f"`{directory}` is published or signed, so nothing can be added to its manifest",
            hint="record golden outputs before `push` or `sign`; save the adapter again for a next version",
        )
    content = bytes(files.get(MANIFEST_NAME, adapter.manifest.to_bytes()))
    return adapter, parse_json_object(content, what=f"`{MANIFEST_NAME}`", limit=MAX_MANIFEST)


@contextmanager
def _attached(model: nn.Module, adapter: VerifiedAdapter, *, allow_other_base: bool) -> Iterator[Run]:
    """Attach *adapter* to *model*, and yield what runs ids without it and with it; leave the model as it was."""
    from lora_hub.replaying.run import last_output
    from lora_hub.searching.candidates import attached
    from lora_hub.searching.loss import evaluating

    with attached(model, {_NAME: adapter}, allow_other_base=allow_other_base) as mixture, evaluating(model):

        def run(ids: Sequence[int]) -> tuple[str, Tensor, Tensor]:
            # A head that the adapter replaces is on in both: what the base has there may be random.
            with mixture({_NAME: 0.0}):
                kind, base = last_output(model, ids)
            with mixture({_NAME: 1.0}):
                return kind, base, last_output(model, ids)[1]

        yield run


def replay(
    model: nn.Module,
    source: str | os.PathLike[str] | AdapterRef | VerifiedAdapter,
    *,
    allow_other_base: bool = False,
    registry: RegistryLike = None,
) -> Replay:
    """Return whether *model* gives with the adapter *source*, and without it, what was recorded in its manifest.

    Args:
        model: The base.
        source: What `apply_adapter` takes.
        allow_other_base: Replay it on a sibling of its base.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.

    Raises:
        CompatibilityError: It does not fit, or the model gives another kind of output than was recorded.
        StateError: Another adapter is merged.
    """
    with needs_torch("replaying golden outputs"):
        from lora_hub.replaying.precision import dtype_of, tolerance
    adapter = source if isinstance(source, VerifiedAdapter) else load(source, registry=registry)
    golden = adapter.manifest.golden
    if golden is None:
        return Replay(verdict=Verdict.NOT_RECORDED, reason=f"the manifest of `{adapter.source}` has no golden outputs")
    _check_inputs(model, golden)
    with _attached(model, adapter, allow_other_base=allow_other_base) as run:
        outputs = [_again(golden, case.values, *run(case.tokens)) for case in golden.cases]
    dtype = dtype_of(model)
    return judge(golden, outputs, dtype=dtype, tolerance=tolerance(golden.dtype, dtype))


def _check_inputs(model: nn.Module, golden: Golden) -> None:
    from lora_hub.replaying.run import token_ids

    try:
        token_ids(model, [case.tokens for case in golden.cases], None)
    except UsageError as error:
        raise CompatibilityError(
            f"the golden inputs are not for this model: {error.message}", hint="name the base that it was recorded with"
        ) from error


def _again(
    golden: Golden, values: Sequence[tuple[int, float, float]], kind: str, base: Tensor, adapted: Tensor
) -> list[tuple[float, float]]:
    """Return the outputs at the places of *values*."""
    if kind != golden.output or any(index >= len(base) for index, _, _ in values):
        raise CompatibilityError(
            f"the model gives {len(base)} {kind}, recorded were {golden.output} up to index "
            f"{max(index for index, _, _ in values)}",
            hint="load it with the head that it was recorded with",
        )
    return [(base[index].item(), adapted[index].item()) for index, _, _ in values]
