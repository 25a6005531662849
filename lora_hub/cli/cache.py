"""cache: look at, verify and clean the local store."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import click

from lora_hub.cli.output import json_option, print_data, shown, size, table

if TYPE_CHECKING:
    from lora_hub.registry.store import StoredAdapter

_DAY = 24 * 3600  # seconds


@click.group()
def cache() -> None:
    """Look at, verify and clean the local store of pulled adapters."""


@cache.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """List the adapters in the store."""
    from lora_hub import api

    stored = list(api.store().adapters())
    rows = [(s.manifest.reference, s.digest, size(s.manifest.size), _when(s)) for s in stored]
    header = ("ADAPTER", "DIGEST", "SIZE", "LAST USED")
    print_data([_document(s) for s in stored], lambda: table(rows, header), as_json=as_json)


@cache.command()
@click.argument("ref")
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show where REF (org/task@1.0.0, or a digest sha256:…) lies in the store."""
    document = _document(_find(ref))
    text = "\n".join(f"{key + ':':<12}{shown(value)}" for key, value in document.items())
    print_data(document, lambda: text, as_json=as_json)


@cache.command()
@json_option
def verify(as_json: bool) -> None:
    """Check every byte in the store against its digest; exit with 6 if one does not match."""
    from lora_hub import api
    from lora_hub.errors import IntegrityError

    checked = list(api.store().verify())
    broken = [(digest, error) for digest, error in checked if error is not None]
    document = {"checked": len(checked), "broken": [{"digest": d, "problem": e.message} for d, e in broken]}
    lines = [f"{digest}  {error.message}" for digest, error in broken] + [
        f"{len(checked)} checked, {len(broken)} broken"
    ]
    print_data(document, lambda: "\n".join(lines), as_json=as_json)
    if broken:
        raise IntegrityError(
            f"{len(broken)} of {len(checked)} adapters in the store are damaged",
            hint=f"run `lora-hub cache remove {broken[0][0]}` and pull again",
        )


@cache.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@json_option
def remove(refs: tuple[str, ...], as_json: bool) -> None:
    """Remove each REF (org/task@1.0.0, or a digest sha256:…) from the store."""
    from lora_hub import api

    store, digests = api.store(), list(dict.fromkeys(_digest(ref) for ref in refs))
    for digest in digests:
        store.remove(digest)
    print_data({"removed": digests}, lambda: "\n".join(f"removed {d}" for d in digests), as_json=as_json)


@cache.command()
@click.option(
    "--days", type=click.IntRange(min=0), default=30, show_default=True, help="Unused for at least this long."
)
@json_option
def prune(days: int, as_json: bool) -> None:
    """Remove adapters that were not used lately, and what killed processes left behind.

    What registries were seen to publish stays known: a rewritten version is refused also afterwards.
    """
    from lora_hub import api

    removed, leftovers = api.store().prune(unused_for=days * _DAY)
    document = {"removed": removed, "leftovers": leftovers}
    text = f"removed {len(removed)} adapters and {leftovers} leftovers"
    print_data(document, lambda: text, as_json=as_json)


def _find(ref: str) -> StoredAdapter:
    from lora_hub import api
    from lora_hub.reference import AdapterRef

    store = api.store()
    return store.describe(ref) if ref.startswith("sha256:") else store.find(AdapterRef.parse(ref))


def _digest(ref: str) -> str:
    """Return the digest that *ref* is or names; a bare digest also names what is damaged beyond reading."""
    from lora_hub import api

    return ref if ref.startswith("sha256:") and api.store().has(ref) else _find(ref).digest


def _document(stored: StoredAdapter) -> dict[str, object]:
    reference = stored.manifest.reference
    return {
        "reference": str(reference) if reference else None,
        "digest": stored.digest,
        "path": str(stored.path),
        "size": stored.manifest.size,
        "last_used": _when(stored),
    }


def _when(stored: StoredAdapter) -> str:
    return dt.datetime.fromtimestamp(stored.last_used, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
