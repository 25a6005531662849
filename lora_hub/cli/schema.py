"""schema: the JSON Schemas of our documents."""

from __future__ import annotations

import click

from lora_hub.cli.output import json_option


@click.command()
@click.argument("name")
@json_option
def schema(name: str, as_json: bool) -> None:  # noqa: ARG001 - the error boundary looks at the words
    """Print the JSON Schema of the document NAME (manifest, lock, recipe, trust, inspection).

    It is JSON, with or without --json.
    """
    from lora_hub.documents import schemas

    click.echo(schemas.schema(name), nl=False)
