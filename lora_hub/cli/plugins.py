"""plugins: what describes which models and adds which methods of composition, and where it came from."""

from __future__ import annotations

import click

from lora_hub.cli.output import json_option, print_data, table


@click.command()
@json_option
def plugins(as_json: bool) -> None:
    """List the plugins that are loaded, from where, and the model types and methods of `compose` that they add."""
    from lora_hub.plugin_manager import plugins as load

    found = load()
    types = {plugin: [t for a in plugin.architectures for t in a.model_types] for plugin in found.plugins}
    rules = {plugin: [rule.name for rule in plugin.rules] for plugin in found.plugins}
    document = [
        {
            "name": p.name,
            "module": p.module,
            "distribution": p.distribution,
            "model_types": types[p],
            "methods": rules[p],
            "error": p.error,
        }
        for p in found.plugins
    ]
    rows = [
        (p.name, p.module, p.distribution, f"broken: {p.error}" if p.error else ", ".join(types[p] + rules[p]))
        for p in found.plugins
    ]
    header = ("PLUGIN", "MODULE", "DISTRIBUTION", "MODEL TYPES OR METHODS")
    print_data(document, lambda: table(rows, header), as_json=as_json)
    for contradiction in found.contradictions():
        raise contradiction
