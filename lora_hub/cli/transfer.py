"""push, pull, list, info: between directories, registries and the local store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lora_hub.cli.output import json_option, print_data, progress, registry_option, shown, size, table

if TYPE_CHECKING:
    from lora_hub.documents.verified_adapter import VerifiedAdapter


@click.command()
@click.argument("directory", type=click.Path(file_okay=False))
@click.argument("ref")
@registry_option
@json_option
def push(directory: str, ref: str, registry: str | None, as_json: bool) -> None:
    """Publish the adapter in DIRECTORY as the immutable version REF (org/task@1.0.0)."""
    from lora_hub import api

    done = api.push(directory, ref, registry=registry)
    document = {
        "reference": str(done.reference),
        "digest": done.digest,
        "registry": done.registry,
        "status": "published" if done.is_new else "already published",
    }
    print_data(document, lambda: f"{done.reference}  {done.digest}  {document['status']}", as_json=as_json)


@click.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@registry_option
@json_option
def pull(refs: tuple[str, ...], registry: str | None, as_json: bool) -> None:
    """Bring each REF into the local store, check every byte, and print where it lies.

    REF is org/task (the newest release), org/task@1.2.0, @^1.2, @1 or @sha256:<digest>.
    """
    from lora_hub import api
    from lora_hub.reference import AdapterRef

    wanted = [AdapterRef.parse(ref) for ref in refs]
    pulled = [api.pull(ref, registry=registry) for ref in (progress(wanted, "Pulling") if len(wanted) > 1 else wanted)]
    document = [{"reference": str(p.reference), "digest": p.digest, "path": str(p.path)} for p in pulled]
    print_data(document, lambda: "\n".join(f"{p.reference}  {p.digest}  {p.path}" for p in pulled), as_json=as_json)


@click.command(name="list")
@click.argument("prefix", default="")
@registry_option
@json_option
def list_(prefix: str, registry: str | None, as_json: bool) -> None:
    """List the adapters of the registry whose org/task begins with PREFIX, and their versions."""
    from lora_hub import api

    listed = api.list_adapters(prefix, registry=registry)
    found = {name: [str(version) for version in versions] for name, versions in listed.items()}
    rows = [(name, ", ".join(versions)) for name, versions in found.items()]
    print_data(found, lambda: table(rows, ("ADAPTER", "VERSIONS")), as_json=as_json)


@click.command()
@click.argument("ref")
@registry_option
@json_option
def info(ref: str, registry: str | None, as_json: bool) -> None:
    """Show what the adapter REF is: base, rank, targets, files. A directory is read; a reference is pulled first."""
    from lora_hub import api

    document = _describe(api.load(ref, registry=registry))
    print_data(document, lambda: _as_lines(document), as_json=as_json)


COMMANDS = (push, pull, list_, info)


def _describe(adapter: VerifiedAdapter) -> dict[str, Any]:
    manifest, layout = adapter.manifest, adapter.layout
    return {
        "reference": str(manifest.reference) if manifest.reference else None,
        "source": adapter.source,
        "digest": adapter.digest,
        "created": manifest.created,
        "license": manifest.license,
        "base": {"repo": manifest.base.repo, "revision": manifest.base.revision, "type": manifest.base.model_type},
        "r": manifest.lora.r,
        "alpha": manifest.lora.alpha,
        "use_rslora": adapter.config.use_rslora,
        "targets": list(manifest.lora.targets),
        "modules": len(layout.modules),
        "modules_to_save": list(adapter.config.modules_to_save),
        "dtype": manifest.lora.dtype,
        "parameters": manifest.lora.parameters,
        "size": manifest.size,
        "ignored_config_keys": list(adapter.config.accepted_unknown),
    }


def _as_lines(document: dict[str, Any]) -> str:
    texts = document | {
        "base": " ".join(filter(None, document["base"].values())),
        "targets": ", ".join(document["targets"]),
        "modules_to_save": ", ".join(document["modules_to_save"]),
        "ignored_config_keys": ", ".join(document["ignored_config_keys"]),
        "parameters": f"{document['parameters']:,}",
        "size": size(document["size"]),
    }
    lines = [(key.replace("_", " "), value) for key, value in texts.items() if value not in (None, "", False)]
    return "\n".join(f"{key + ':':<21}{shown(value)}" for key, value in lines)
