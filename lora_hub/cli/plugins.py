"""plugins: what describes which models, and where it came from."""

from __future__ import annotations

import click

from lora_hub.cli.output import json_option, print_data, table


@click.command()
@json_option
def plugins(as_json: bool) -> None:
    """List the plugins that are loaded, from where, and the model types they describe."""
    from lora_hub.plugin_manager import contradiction
    from lora_hub.plugin_manager import plugins as load

    found = load()
    types = {plugin: [t for a in plugin.architectures for t in a.model_types] for plugin in found.plugins}
    document = [
        {"name": p.name, "module": p.module, "distribution": p.distribution, "model_types": types[p], "error": p.error}
        for p in found.plugins
    ]
    rows = [
        (p.name, p.module, p.distribution, f"broken: {p.error}" if p.error else ", ".join(types[p]))
        for p in found.plugins
    ]
    print_data(document, lambda: table(rows, ("PLUGIN", "MODULE", "DISTRIBUTION", "MODEL TYPES")), as_json=as_json)
    for model_type, claims in found.claims().items():
        if len(claims) > 1:
            raise contradiction(model_type, [plugin for plugin, _ in claims])
