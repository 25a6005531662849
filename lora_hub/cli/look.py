"""list, search, info: what registries have, without moving weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from lora_hub.cli.lineage import lineage_lines, lineage_to_json
from lora_hub.cli.output import json_option, print_data, registry_option, shown, size, table

if TYPE_CHECKING:
    from lora_hub.look import Description


@click.command(name="list")
@click.argument("prefix", default="")
@registry_option
@json_option
def list_(prefix: str, registry: str | None, as_json: bool) -> None:
    """List the adapters of the registry whose org/task begins with PREFIX, and their versions.

    On the Hub, PREFIX must name an organisation (org/).
    """
    from lora_hub import look

    listed = look.list_adapters(prefix, registry=registry)
    found = {name: [str(version) for version in versions] for name, versions in listed.items()}
    rows = [(name, ", ".join(versions)) for name, versions in found.items()]
    print_data(found, lambda: table(rows, ("ADAPTER", "VERSIONS")), as_json=as_json)


@click.command()
@click.argument("text", default="")
@click.option("--base", metavar="MODEL", help="Only adapters of this base model, such as org/model.")
@click.option("--limit", type=click.IntRange(min=1, max=1000), default=20, show_default=True)
@registry_option
@json_option
def search(text: str, base: str | None, limit: int, registry: str | None, as_json: bool) -> None:
    """Find adapters whose name holds TEXT. On the Hub: all in PEFT's format, the most downloaded first."""
    import dataclasses

    from lora_hub import look

    found = look.search(text, base=base, limit=limit, registry=registry)
    rows = [(f.name, f.base or "", "" if f.downloads is None else f"{f.downloads:,}") for f in found]
    header = ("ADAPTER", "BASE", "DOWNLOADS")
    print_data([dataclasses.asdict(f) for f in found], lambda: table(rows, header), as_json=as_json)


@click.command()
@click.argument("ref")
@registry_option
@json_option
def info(ref: str, registry: str | None, as_json: bool) -> None:
    """Show what the adapter REF (or a directory) is: base, rank, targets, digest. No weights are downloaded.

    Of a composed adapter, also the tree of what it was made of.
    """
    from lora_hub import look

    description = look.info(ref, registry=registry)
    document = _describe(description)
    print_data(document, lambda: "\n".join([_as_lines(document), *_as_tree(description)]), as_json=as_json)


COMMANDS = (list_, search, info)


def _describe(description: Description) -> dict[str, Any]:
    manifest, config = description.manifest, description.config
    return {
        "reference": str(description.reference) if description.reference else None,
        "source": description.source,
        "commit": description.commit,
        "digest": description.digest,
        "trusted": description.is_trusted,
        "trust": description.reason or None,
        "signers": [str(signer) for signer in description.signers],
        "yanked": description.yanked,
        "created": manifest.created,
        "license": manifest.license,
        "base": {"repo": manifest.base.repo, "revision": manifest.base.revision, "type": manifest.base.model_type},
        "r": manifest.lora.r,
        "alpha": manifest.lora.alpha,
        "use_rslora": config.use_rslora,
        "targets": list(manifest.lora.targets),
        "modules": description.modules,
        "modules_to_save": list(config.modules_to_save),
        "dtype": manifest.lora.dtype,
        "parameters": manifest.lora.parameters,
        "size": manifest.size,
        "ignored_config_keys": list(config.accepted_unknown),
        "lineage": None if manifest.lineage is None else lineage_to_json(manifest.lineage, description.parents),
    }


def _as_lines(document: dict[str, Any]) -> str:
    texts = document | {
        "trusted": {None: None, True: "yes", False: "no"}[document["trusted"]],
        "signers": ", ".join(document["signers"]),
        "base": " ".join(filter(None, document["base"].values())),
        "targets": ", ".join(document["targets"]),
        "modules_to_save": ", ".join(document["modules_to_save"]),
        "ignored_config_keys": ", ".join(document["ignored_config_keys"]),
        "parameters": f"{document['parameters']:,}",
        "size": size(document["size"]),
        "lineage": None,  # a tree, below
    }
    lines = [(key.replace("_", " "), value) for key, value in texts.items() if value not in (None, "", False)]
    return "\n".join(f"{key + ':':<21}{shown(value)}" for key, value in lines)


def _as_tree(description: Description) -> Iterator[str]:
    lineage = description.manifest.lineage
    if lineage is not None:
        first, *rest = lineage_lines(lineage, description.parents)
        yield f"{'lineage:':<21}{first}"
        yield from (" " * 21 + line for line in rest)
