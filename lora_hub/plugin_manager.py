"""Find the plugins, load them one by one, and say whose fault it is when one is broken."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points

import pluggy

from lora_hub import hookspecs
from lora_hub.architecture import Architecture
from lora_hub.checking.check import Check
from lora_hub.errors import PluginError, UsageError
from lora_hub.rule import Rule, nearest

Offer = Architecture | Rule | Check

GROUP = "lora_hub"
OURS = "LH"  # how the codes of the built-in checks begin
DISABLED = "LORA_HUB_DISABLE_PLUGINS"  # comma-separated names of entry points
# What each hook returns a list of.
HOOKS: Mapping[str, type[Offer]] = {
    "lora_hub_checks": Check,
    "lora_hub_architectures": Architecture,
    "lora_hub_rules": Rule,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One entry point of the group ``lora_hub``; ``error`` says why it could not be used."""

    name: str
    module: str
    distribution: str
    architectures: tuple[Architecture, ...] = ()
    rules: tuple[Rule, ...] = ()
    checks: tuple[Check, ...] = ()
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
            raise contradiction(f"the model type `{model_type}`", [plugin for plugin, _ in claims])
        if not claims:
            raise PluginError(
                f"no plugin describes the model type `{model_type}`{self._faults()}",
                hint="run `lora-hub plugins` to see what is described; name the modules themselves as targets, or add "
                "a plugin (README, “Add an architecture”)",
            )
        return claims[0][1]

    def rules(self) -> Mapping[str, list[tuple[Plugin, Rule]]]:
        """Return who adds each rule of composition."""
        claims: dict[str, list[tuple[Plugin, Rule]]] = {}
        for plugin in self.plugins:
            for rule in plugin.rules:
                claims.setdefault(rule.name, []).append((plugin, rule))
        return claims

    def rule(self, name: str) -> Rule:
        """Return the rule of composition that is called *name*.

        Raises:
            UsageError: There is none; the nearest names and broken plugins are named.
            PluginError: Two plugins add it.
        """
        known = self.rules()
        claims = known.get(name, [])
        if len(claims) > 1:
            raise contradiction(f"the method `{name}`", [plugin for plugin, _ in claims])
        if not claims:
            there_are = f"there are {', '.join(sorted(known))}{nearest(name, known)}"
            raise UsageError(
                f"there is no method `{name}`{self._faults()}",
                hint=there_are
                if known
                else f"install lora-hub again, or empty `{DISABLED}`: it has plugins of its own",
            )
        return claims[0][1]

    def checks(self) -> Mapping[str, list[tuple[Plugin, Check]]]:
        """Return who adds each check, by its code."""
        claims: dict[str, list[tuple[Plugin, Check]]] = {}
        for plugin in self.plugins:
            for check in plugin.checks:
                claims.setdefault(check.rule.code, []).append((plugin, check))
        return claims

    def contradictions(self) -> Iterable[PluginError]:
        """Yield an error for everything that two plugins claim."""
        for what, claims in (("model type", self.claims()), ("method", self.rules()), ("rule", self.checks())):
            for name, claimants in claims.items():
                if len(claimants) > 1:
                    yield contradiction(f"the {what} `{name}`", [plugin for plugin, _ in claimants])

    def _faults(self) -> str:
        return "".join(f"; the plugin {plugin} is broken: {plugin.error}" for plugin in self.broken)


def contradiction(what: str, plugins: Iterable[Plugin]) -> PluginError:
    """Return the error about several *plugins* that claim one thing, such as "the model type `llama`"."""
    return PluginError(
        f"{what} is claimed by {' and by '.join(map(str, plugins))}",
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
    plugin = Plugin(name=entry.name, module=entry.value, distribution=distribution)
    try:
        offered = tuple(_offers(entry))
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a plugin may raise anything
        text = f"{type(problem).__name__}: {problem}"
        return replace(plugin, error="".join(c if c.isprintable() else " " for c in text))
    return replace(
        plugin,
        architectures=tuple(one for one in offered if isinstance(one, Architecture)),
        rules=tuple(one for one in offered if isinstance(one, Rule)),
        checks=tuple(one for one in offered if isinstance(one, Check)),
    )


def _offers(entry: EntryPoint) -> Iterator[Offer]:
    # A manager of its own for each plugin: what a hook returns and what it breaks belongs to exactly one of them.
    manager = pluggy.PluginManager(hookspecs.NAMESPACE)
    manager.add_hookspecs(hookspecs)
    manager.register(entry.load(), name=entry.name)
    manager.check_pending()
    # Not `manager.hook.…()`: pluggy drops a None, and a plugin that forgot its `return` would vanish without a word.
    implementations = {hook: getattr(manager.hook, hook).get_hookimpls() for hook in HOOKS}
    if not any(implementations.values()):
        raise TypeError("it implements no hook of lora-hub: is `@hookimpl` missing?")
    for hook, found in implementations.items():
        for implementation in found:
            yield from _returned(hook, implementation.function())


def _returned(hook: str, returned: object) -> Iterator[Offer]:
    if not isinstance(returned, Iterable):
        raise TypeError(f"{hook} returned {returned!r} of type {type(returned).__name__}, not a list")
    for one in returned:
        if not isinstance(one, HOOKS[hook]):
            raise TypeError(f"{hook} returned {one!r}, expected {_article(HOOKS[hook].__name__)}")
        if isinstance(one, Check) and one.rule.code.startswith(OURS):
            raise TypeError(f"{hook} returned a check of the code {one.rule.code}: {OURS} is lora-hub's own")
        yield one


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
