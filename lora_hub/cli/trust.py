"""trust: whose adapters may be used, and which though nobody signed them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TextIO

import click

from lora_hub.cli.output import json_option, print_data, registry_option, shown, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_hub.documents.trust_entries import Entry
    from lora_hub.trust import Explanation


@click.group()
def trust() -> None:
    """Say whose adapters may be used: by key or identity, or one version by its digest."""


@trust.command()
@click.argument("key", required=False)
@click.option("--scope", required=True, help="What it may sign: org/task, org/* or *.")
@click.option("--from", "ref", metavar="REF", help="KEY is a fingerprint: take the key from what it signed.")
@click.option("--name", help="What to call the key in your policy.")
@click.option("--identity", help="A keyless signer instead of KEY: an e-mail address or a URI.")
@click.option("--issuer", help="The OpenID issuer that says so.")
@click.option("--threshold", type=click.IntRange(min=1), help="How many signers of the scope must have signed.")
@click.option("--min-version", help="Accept no version below this one.")
@click.option("--only", is_flag=True, help="Let nobody else sign for this scope any more.")
@registry_option
@json_option
def add(
    key: str | None,
    scope: str,
    ref: str | None,
    name: str | None,
    identity: str | None,
    issuer: str | None,
    threshold: int | None,
    min_version: str | None,
    only: bool,
    registry: str | None,
    as_json: bool,
) -> None:
    """Let KEY (a file with a public key, or a fingerprint and --from) sign the adapters of a scope.

    A rule for a narrower scope than before begins with those whom the wider one trusts, unless --only is given.

    Compare the fingerprint with what its owner says over another way before you add it.
    """
    from lora_hub import trust as policy
    from lora_hub.documents.signers import Identity
    from lora_hub.errors import UsageError

    if (key is None) == (identity is None) or (identity is None) != (issuer is None):
        raise UsageError("who is to be trusted?", hint="name KEY, or --identity and --issuer")
    if key is None:
        who = Identity(identity=str(identity), issuer=str(issuer))
        rule = policy.trust_identity(who, scope=scope, threshold=threshold, min_version=min_version, only=only)
    else:
        public = policy.signer_key(ref, key, registry=registry) if ref else policy.read_public_key(key)
        rule = policy.trust_key(public, scope=scope, name=name, threshold=threshold, min_version=min_version, only=only)
    _print([rule], as_json=as_json)


@trust.command()
@click.argument("refs", metavar="[REF]...", nargs=-1)
@click.option("-r", "file", metavar="FILE", type=click.File(), help="Pin each line of FILE: a REF; # begins a comment.")
@click.option("--digest", metavar="sha256:HEX", help="Pin REF only if its manifest has this digest.")
@registry_option
@json_option
def pin(refs: tuple[str, ...], file: TextIO | None, digest: str | None, registry: str | None, as_json: bool) -> None:
    """Pin what each REF means now, by commit and digest: all of them, or none. No weights are downloaded."""
    from lora_hub import trust as policy
    from lora_hub.errors import UsageError

    wanted = [*refs, *(_lines(file.read()) if file else ())]
    if not wanted:
        raise UsageError("no REF is named", hint="name one, or a file of them with -r FILE")
    if digest and len(wanted) != 1:
        raise UsageError("--digest is that of one REF", hint="name one REF, or write each as org/task@sha256:…")
    _print(policy.pin(wanted, registry=registry, digest=digest), as_json=as_json)


@trust.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """List keys, rules, revocations and pins."""
    from lora_hub import trust as policy

    _print(policy.trust().read().entries, as_json=as_json)


@trust.command()
@click.argument("what")
@registry_option
@json_option
def remove(what: str, registry: str | None, as_json: bool) -> None:
    """Remove the pin of a REF (org/task@1.2.0), the rule of a scope (org/*), or a key (its name or fingerprint)."""
    from lora_hub import trust as policy

    _print(policy.untrust(what, registry=registry), as_json=as_json)


@trust.command()
@click.argument("what")
@click.option("--reason", metavar="TEXT", help="Why, for the one who meets it.")
@json_option
def revoke(what: str, reason: str | None, as_json: bool) -> None:
    """Refuse a key (name, fingerprint or file) or a version (sha256:…) for good, whatever else speaks for it."""
    from lora_hub import trust as policy

    _print([policy.revoke(what, reason=reason)], as_json=as_json)


@trust.command()
@click.argument("ref")
@registry_option
@json_option
def explain(ref: str, registry: str | None, as_json: bool) -> None:
    """Say which rule applies to REF, who signed it, and whether it may be used. No weights are downloaded."""
    from lora_hub import trust as policy

    document = _explained(policy.explain(ref, registry=registry))
    lines = [(key, ", ".join(value) if isinstance(value, list) else value) for key, value in document.items()]
    text = "\n".join(f"{key + ':':<13}{shown(value)}" for key, value in lines if value not in (None, "", False, True))
    print_data(document, lambda: text, as_json=as_json)


def _explained(explanation: Explanation) -> dict[str, Any]:
    decision, choice = explanation.decision, explanation.choice
    return {
        "reference": str(explanation.reference),
        "digest": choice.published.digest,
        "allowed": decision.refusal is None,
        "decision": f"{'may be used' if decision.refusal is None else 'refused'}: {decision.reason}",
        "rule": explanation.rule.scope if explanation.rule else None,
        "project": explanation.project_rule.scope if explanation.project_rule else None,
        "signers": [str(signer) for signer in decision.signers],
        "yanked": choice.yanked,
        "skipped": f"{choice.skipped}: {choice.skipped_because}" if choice.skipped else None,
        "hint": decision.refusal.hint if decision.refusal else None,
    }


def _lines(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _print(entries: Iterable[Entry], *, as_json: bool) -> None:
    entries = list(entries)
    rows = [_row(entry) for entry in entries]
    documents = [{"kind": kind, **_document(entry)} for (kind, *_), entry in zip(rows, entries, strict=True)]
    print_data(documents, lambda: table(rows, ("KIND", "WHAT", "SAYS")), as_json=as_json)


def _row(entry: Entry) -> tuple[str, str, str]:
    from lora_hub.documents.trust_entries import Key, Revocation, Rule

    if isinstance(entry, Key):
        window = [f"{word} {moment:%Y-%m-%d}" for word, moment in _window(entry.not_before, entry.not_after) if moment]
        return "key", entry.name, " ".join([entry.fingerprint, *window])
    if isinstance(entry, Rule):
        return "rule", entry.scope, f"{entry.threshold} of {', '.join([*entry.keys, *map(str, entry.identities)])}"
    if isinstance(entry, Revocation):
        return "revoked", entry.key or str(entry.digest), entry.reason or ""
    return "pin", str(entry.reference), " ".join(filter(None, (entry.digest, entry.commit, entry.registry)))


def _window(start: Any, end: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - two moments, or None
    return [("from", start), ("until", end)]


def _document(entry: Entry) -> dict[str, Any]:
    """Return *entry* as JSON has it; of a key, its fingerprint as well."""
    from lora_hub.documents.trust_entries import Key

    document = dataclasses.asdict(entry)
    if isinstance(entry, Key):
        document |= {"pem": document.pop("public")["pem"], "fingerprint": entry.fingerprint}
    texts = ("min_version", "not_before", "not_after")
    return document | {name: str(getattr(entry, name)) for name in texts if getattr(entry, name, None) is not None}
