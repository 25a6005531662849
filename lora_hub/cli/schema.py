"""schema: the JSON Schemas of our documents."""

from __future__ import annotations

import click


@click.command()
@click.argument("name")
def schema(name: str) -> None:
    """Print the JSON Schema of the document NAME (manifest)."""
    from lora_hub.documents import schemas

    click.echo(schemas.schema(name), nl=False)
