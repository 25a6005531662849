"""Make an adapter out of a fine-tuned checkpoint: directories in, a directory and a report out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_hub.adapter_directory import write_adapter
from lora_hub.errors import LoraHubError, UsageError
from lora_hub.extras import needs_torch
from lora_hub.files import machine_errors
from lora_hub.reference import PathLike

if TYPE_CHECKING:
    from lora_hub.checkpoint.checkpoint import Checkpoint
    from lora_hub.checkpoint.extract_report import ExtractReport

Progress = Callable[[Sequence[Any], str], Iterable[Any]]

RANK = "max:64"  # what a fine-tune of everything is cut to; of one that was a merged LoRA, nothing is lost


def extract_adapter(
    finetuned: PathLike,
    base: PathLike,
    output: PathLike,
    *,
    rank: str | int = RANK,
    dtype: str | None = None,
    full: Collection[str] = (),
    progress: Progress | None = None,
) -> ExtractReport:
    """Write into *output* the adapter that makes the checkpoint *finetuned* out of *base*, and say what it holds.

    Of each linear module whose weight differs, A ``[r, in]`` and B ``[out, r]`` are the best approximation of
    ``W - W0`` of their rank (Eckart and Young 1936). Both checkpoints are read in blocks; no model is made.

    Args:
        finetuned: A directory with ``config.json`` and safetensors, in one file or in shards.
        base: The same, of what it was fine-tuned from.
        output: A directory that is empty, or does not exist.
        rank: ``max:N`` or ``N`` singular values at most, ``energy:P`` for the share P of the squares of all,
            ``ratio:X`` for those at most X times smaller than the largest, ``exact`` for all that are more than what
            rounding makes.
        dtype: ``float32``, ``bfloat16``, …; by default what most of *finetuned* is stored in.
        full: Modules to store as a whole (``modules_to_save``), by path or the end of one: ``("lm_head",)``.
        progress: ``progress(items, label)`` yields the items and shows how far it is.

    Raises:
        UsageError: No such rank or dtype, or *output* holds something already.
        NotFoundError: A directory, its config or a shard is missing, or a name of *full* is that of no module.
        MalformedError: A document, a header or a number is malformed.
        CompatibilityError: The two are not of one architecture, or nothing changed that LoRA can say.
        MachineError: *output* cannot be written.
    """
    with needs_torch("extracting an adapter"):
        from lora_hub.checkpoint.extract import extract
        from lora_hub.composing.rank import Rank
    wanted, target = Rank.parse(str(rank)), Path(output)
    if wanted.kind == "fit":
        raise UsageError(
            "`fit:vllm` needs all ranks before the first", hint="compose what is extracted, with that rank"
        )
    _check_empty(target)
    after, before = _read(Path(finetuned), "the fine-tuned checkpoint"), _read(Path(base), "the base")
    shown = progress or (lambda items, _label: items)
    done = extract(after, before, rank=wanted, dtype=dtype, full=full, track=lambda pairs: shown(pairs, "Extracting"))
    write_adapter(target, done.files)
    return done.report


def _check_empty(target: Path) -> None:
    with machine_errors():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"`{target}` holds something already", hint="name a directory that does not exist yet")


def _read(directory: Path, what: str) -> Checkpoint:
    from lora_hub.checkpoint.base_files import LocalBase
    from lora_hub.checkpoint.checkpoint import read_checkpoint

    try:
        return read_checkpoint(LocalBase(directory))
    except LoraHubError as error:
        raise error.within(what) from error
