"""trust: which adapters may be used, though nobody signed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import click

from lora_hub.cli.output import json_option, print_data, registry_option, table

if TYPE_CHECKING:
    from lora_hub.documents.trust_policy import Pin


@click.group()
def trust() -> None:
    """Say which adapters from the Hub and from object stores may be used."""


@trust.command()
@click.argument("refs", metavar="[REF]...", nargs=-1)
@click.option("-r", "file", metavar="FILE", type=click.File(), help="Pin each line of FILE: a REF; # begins a comment.")
@click.option("--digest", metavar="sha256:HEX", help="Pin REF only if its manifest has this digest.")
@registry_option
@json_option
def pin(refs: tuple[str, ...], file: TextIO | None, digest: str | None, registry: str | None, as_json: bool) -> None:
    """Pin what each REF means now, by commit and digest: all of them, or none. No weights are downloaded."""
    from lora_hub import api
    from lora_hub.errors import UsageError

    wanted = [*refs, *(_lines(file.read()) if file else ())]
    if not wanted:
        raise UsageError("no REF is named", hint="name one, or a file of them with -r FILE")
    if digest and len(wanted) != 1:
        raise UsageError("--digest is that of one REF", hint="name one REF, or write each as org/task@sha256:…")
    pins = api.pin(wanted, registry=registry, digest=digest)
    _print(pins, as_json=as_json)


@trust.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """List what is pinned."""
    from lora_hub import api

    _print(api.trust().read().pins, as_json=as_json)


@trust.command()
@click.argument("ref")
@registry_option
@json_option
def remove(ref: str, registry: str | None, as_json: bool) -> None:
    """Remove the pin of REF (org/task@1.2.0, or a commit)."""
    from lora_hub import api

    _print([api.unpin(ref, registry=registry)], as_json=as_json)


def _lines(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _print(pins: tuple[Pin, ...] | list[Pin], *, as_json: bool) -> None:
    import dataclasses

    rows = [(p.reference, p.digest, p.commit or "", p.registry) for p in pins]
    header = ("ADAPTER", "DIGEST", "COMMIT", "REGISTRY")
    print_data([dataclasses.asdict(p) for p in pins], lambda: table(rows, header), as_json=as_json)
