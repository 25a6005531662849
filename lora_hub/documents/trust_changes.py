"""Changes of a trust policy: what to take out and what to put in, for each thing that its user may want. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import TypeVar

from lora_hub.documents.signers import Identity, PublicKey
from lora_hub.documents.trust_entries import Entry, Key, Pin, Rule, is_key_name, is_scope
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.errors import NotFoundError, PolicyError, UsageError
from lora_hub.version import Version

T = TypeVar("T")

_LOOK = "run `lora-hub trust list` to see what there is"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What to take out of a policy, and what to put into it."""

    removed: tuple[Entry, ...] = ()
    added: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusting:
    """That a key or a keyless identity may sign the adapters of a scope.

    The rule of this scope is extended. If there is none, a new one is made, which begins as the wider one that applied
    until now: to trust one more never takes trust from another.

    Attributes:
        who: The key, or the identity.
        scope: ``org/task``, ``org/*`` or ``*``.
        name: What to call a key that the policy does not have yet; by default its fingerprint's first digits.
        threshold: How many signers of the rule must have signed; None leaves that as it is.
        min_version: No version below it is accepted; None leaves that as it is.
        only: Whether nobody else may sign for this scope any more.
    """

    who: PublicKey | Identity
    scope: str
    name: str | None = None
    threshold: int | None = None
    min_version: str | None = None
    only: bool = False

    def change(self, policy: TrustPolicy) -> Change:
        """Return the change that makes it so in *policy*."""
        old = rule_of(policy, self.scope)
        rule = old or _wider(policy, self.scope) or Rule(scope=self.scope)
        if self.only:
            rule = replace_fields(rule, keys=(), identities=(), threshold=1)
        keys: tuple[Key, ...] = ()
        if isinstance(self.who, Identity):
            rule = replace_fields(rule, identities=_with(rule.identities, self.who))
        else:
            known = next((key for key in policy.keys if key.public == self.who), None)
            key = known or Key(name=self._free_name(policy, self.who), public=self.who)
            keys = () if known else (key,)
            rule = replace_fields(rule, keys=_with(rule.keys, key.name))
        rule = self._limited(rule)
        if rule == old:
            return Change(added=keys)
        return Change(removed=() if old is None else (old,), added=(*keys, rule))

    def _limited(self, rule: Rule) -> Rule:
        signers = len(rule.keys) + len(rule.identities)
        if self.threshold is not None and not 1 <= self.threshold <= signers:
            raise UsageError(f"the rule has {signers} signers, not {self.threshold}", hint="add the others first")
        return replace_fields(
            rule,
            threshold=rule.threshold if self.threshold is None else self.threshold,
            min_version=rule.min_version if self.min_version is None else Version.parse(self.min_version),
        )

    def _free_name(self, policy: TrustPolicy, key: PublicKey) -> str:
        name = self.name or key.fingerprint[:16]
        if not is_key_name(name):
            raise UsageError(f"{name!a} is no name for a key", hint="use letters, digits and `.`, `_`, `-`")
        if any(known.name == name for known in policy.keys):
            raise UsageError(f"another key is called `{name}` in your policy", hint="give this one another `--name`")
        return name


def _with(items: tuple[T, ...], one: T) -> tuple[T, ...]:
    return tuple(dict.fromkeys((*items, one)))


def rule_of(policy: TrustPolicy, scope: str) -> Rule | None:
    """Return the rule of exactly this *scope*, if there is one; raise `UsageError` if it is none."""
    if not is_scope(scope):
        raise UsageError(f"{scope!a} is no scope", hint="write `org/task`, `org/*` or `*`")
    return next((rule for rule in policy.rules if rule.scope == scope), None)


def find_key(policy: TrustPolicy, what: str) -> Key:
    """Return the key with this name or fingerprint; raise `NotFoundError` if there is none."""
    found = [key for key in policy.keys if what in {key.name, key.fingerprint}]
    if not found:
        raise NotFoundError(f"your policy has no key {what!a}", hint=_LOOK)
    return found[0]


def without(policy: TrustPolicy, what: str) -> Change:
    """Return the change that removes *what*: the rule of a scope, a key (its name or fingerprint), or an identity.

    With a signer goes its place in every rule, and a rule that nobody is left to sign for, or that then says no more
    than the wider one.

    Raises:
        NotFoundError: There is no such thing.
        PolicyError: A rule would need more signers than are left.
    """
    if any(identity.identity == what for rule in policy.rules for identity in rule.identities):
        return _without_signer(policy, lambda rule: replace_fields(rule, identities=_not_called(rule.identities, what)))
    if not is_scope(what):
        key = find_key(policy, what)
        return _without_signer(policy, lambda rule: replace_fields(rule, keys=_except(rule.keys, key.name)), key)
    rule = rule_of(policy, what)
    if rule is None:
        raise NotFoundError(f"no rule has the scope `{what}`", hint=_LOOK)
    return Change(removed=(rule,))


def _except(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)


def _not_called(identities: tuple[Identity, ...], name: str) -> tuple[Identity, ...]:
    return tuple(identity for identity in identities if identity.identity != name)


def _without_signer(policy: TrustPolicy, cut: Callable[[Rule], Rule], *keys: Key) -> Change:
    """Return the change that takes *keys* out, and of every rule what *cut* takes out of it."""
    old = [rule for rule in policy.rules if cut(rule) != rule]
    kept = replace_fields(policy, rules=tuple(rule for rule in policy.rules if rule not in old))
    new = map(cut, old)
    left = [rule for rule in new if (rule.keys or rule.identities) and rule != _wider(kept, rule.scope)]
    for rule in left:
        if rule.threshold > len(rule.keys) + len(rule.identities):
            raise PolicyError(
                f"the rule for `{rule.scope}` needs {rule.threshold} signers, and fewer would be left",
                hint=f"add another one first, or remove the rule: `lora-hub trust remove '{rule.scope}'`",
            )
    return Change(removed=(*keys, *old), added=tuple(left))


def _wider(policy: TrustPolicy, scope: str) -> Rule | None:
    """Return the rule that applies to *scope* while it has none of its own, as one of its own."""
    wider = None if scope == "*" else policy.rule(scope.replace("*", "x"))
    return wider and replace_fields(wider, scope=scope)


def pinning(policy: TrustPolicy, pins: Iterable[Pin], *, replace: bool) -> Change:
    """Return the change that adds *pins*, in place of those that they contradict if they may *replace* them.

    Raises:
        PolicyError: One of them contradicts another pin, and *replace* is False.
    """
    known, removed, added = list(policy.pins), [], []
    for pin in pins:
        for old in [other for other in known if other.contradicts(pin)]:
            if not replace:
                raise PolicyError(
                    f"`{old.reference}` in `{old.registry}` is pinned to {old.digest} and would become {pin.digest}",
                    hint=f"if the new one is right: `lora-hub trust remove {old.reference}`, and pin it again",
                )
            known.remove(old)
            removed.append(old)
        if pin not in known:
            known.append(pin)
            added.append(pin)
    # Of two new ones that contradict each other, the later one holds.
    replaced = tuple(pin for pin in removed if pin in policy.pins)
    return Change(removed=replaced, added=tuple(pin for pin in added if pin in known))
