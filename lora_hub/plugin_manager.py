"""Find the plugins, load them one by one, and say whose fault it is when one is broken."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import pluggy

from lora_hub import hookspecs
from lora_hub.architecture import Architecture
from lora_hub.errors import PluginError

GROUP = "lora_hub"
DISABLED = "LORA_HUB_DISABLE_PLUGINS"  # comma-separated names of entry points


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One entry point of the group ``lora_hub``; ``error`` says why it could not be used."""

    name: str
    module: str
    distribution: str
    architectures: tuple[Architecture, ...] = ()
    error: str | None = None

    def __str__(self) -> str:
        return f"`{self.name}` ({self.module}, from {self.distribution})"


@dataclass(frozen=True, slots=True)
class Plugins:
    """All plugins of this process, the broken ones included."""

    plugins: tuple[Plugin, ...]

    @property
    def broken(self) -> tuple[Plugin, ...]:
        """The plugins that could not be loaded."""
        return tuple(plugin for plugin in self.plugins if plugin.error)

    def claims(self) -> Mapping[str, list[tuple[Plugin, Architecture]]]:
        """Return who describes each model type."""
        claims: dict[str, list[tuple[Plugin, Architecture]]] = {}
        for plugin in self.plugins:
            for architecture in plugin.architectures:
                for model_type in architecture.model_types:
                    claims.setdefault(model_type, []).append((plugin, architecture))
        return claims

    def find(self, model_type: str | None) -> Architecture:
        """Return the architecture of *model_type*.

        Raises:
            PluginError: No plugin describes it, or two do; broken plugins are named, since one of them might have.
        """
        claims = self.claims().get(model_type or "", [])
        if len(claims) > 1:
            raise contradiction(str(model_type), [plugin for plugin, _ in claims])
        if not claims:
            broken = "".join(f"; the plugin {plugin} is broken: {plugin.error}" for plugin in self.broken)
            raise PluginError(
                f"no plugin describes the model type `{model_type}`{broken}",
                hint="run `lora-hub plugins` to see what is described; name the modules themselves as targets, or add "
                "a plugin (README, “Add an architecture”)",
            )
        return claims[0][1]


def contradiction(model_type: str, plugins: Iterable[Plugin]) -> PluginError:
    """Return the error about several *plugins* that describe one model type."""
    return PluginError(
        f"the model type `{model_type}` is claimed by {' and by '.join(map(str, plugins))}",
        hint=f"uninstall one of them, or set `{DISABLED}` to the name of the one to leave out",
    )


@functools.cache
def plugins() -> Plugins:
    """Return the plugins that are installed, loaded once per process."""
    disabled = {name.strip() for name in os.environ.get(DISABLED, "").split(",")}
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return Plugins(tuple(_load(entry) for entry in found if entry.name not in disabled))


def _load(entry: EntryPoint) -> Plugin:
    """Return the plugin behind *entry*. A broken one is described, never raised: the others must go on working."""
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
    try:
        architectures, error = tuple(_architectures(entry)), None
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a plugin may raise anything
        text = f"{type(problem).__name__}: {problem}"
        architectures, error = (), "".join(c if c.isprintable() else " " for c in text)
    return Plugin(
        name=entry.name, module=entry.value, distribution=distribution, architectures=architectures, error=error
    )


def _architectures(entry: EntryPoint) -> Iterable[Architecture]:
    # A manager of its own for each plugin: what a hook returns and what it breaks belongs to exactly one of them.
    manager = pluggy.PluginManager(hookspecs.NAMESPACE)
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=entry.name)
    manager.check_pending()
    # Not `manager.hook`: pluggy drops a None, and a plugin that forgot its `return` would vanish without a word.
    implementations = manager.hook.lora_hub_architectures.get_hookimpls()
    if not implementations:
        raise TypeError("it implements no hook of lora-hub: is `@hookimpl` missing?")
    for implementation in implementations:
        returned = implementation.function()
        if not isinstance(returned, Iterable):
            raise TypeError(
                f"lora_hub_architectures returned {returned!r} of type {type(returned).__name__}, not a list"
            )
        for architecture in returned:
            if not isinstance(architecture, Architecture):
                raise TypeError(f"lora_hub_architectures returned {architecture!r}, expected an Architecture")
            yield architecture
