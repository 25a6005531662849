"""May an adapter be used? Decided from the policy and from what was proven; it reads no file and no clock."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.signers import Identity, Signer
from lora_hub.documents.trust_entries import Key, Rule
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.errors import LoraHubError, PolicyError, UntrustedError
from lora_hub.reference import AdapterRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is known of a version when it is decided whether it may be used.

    Attributes:
        registry: The URL of the registry that it is in.
        is_remote: Whether others may write there.
        reference: An exact version or a commit.
        digest: That of its manifest.
        named: The digest that the caller named, if one was.
        manifest: What the version says of itself, proven where it is signed; None if nobody signed it, and it is none.
        signers: Whose signatures over that manifest were verified.
        strangers: Who else is said to have signed: keys and identities that no rule names, unverified.
        carried: The fingerprints of those strangers whose public keys lie in what they signed.
        is_directory: Whether ``registry`` is but a directory that holds the files of this one version.
    """

    registry: str
    is_remote: bool
    reference: AdapterRef
    digest: str
    manifest: Manifest | None
    named: str | None = None
    signers: tuple[Signer, ...] = ()
    strangers: tuple[Signer, ...] = ()
    carried: frozenset[str] = frozenset()
    is_directory: bool = False


class By(Enum):
    """What speaks for a version."""

    DIGEST = "its digest was named"
    PIN = "its digest is pinned"
    RULE = "the rule for its name"
    PLACE = "it lies in a directory of this machine, and no rule covers its name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether an adapter may be used, and why.

    Attributes:
        reason: In words.
        rule: The rule that applies to its name.
        signers: Those that count.
        by: What speaks for it, if it may be used.
        refusal: The error to raise, if it may not.
        is_withdrawn: Whether this user's own policy took it back, by its digest or a limit, so that an older version
            may stand in for it. Which signatures are there is for the registry to choose, and so never a reason.
        is_alarm: Whether a version that was known is another one now, which no older version can stand in for.
    """

    reason: str
    rule: Rule | None = None
    signers: tuple[Signer, ...] = ()
    by: By | None = None
    refusal: LoraHubError | None = None
    is_withdrawn: bool = False
    is_alarm: bool = False

    @property
    def is_pinned(self) -> bool:
        """Whether its digest, which the caller named or pinned, is what speaks for it."""
        return self.by in {By.DIGEST, By.PIN}

    def require(self) -> None:
        """Raise the refusal, if there is one."""
        if self.refusal is not None:
            raise self.refusal


def authorize(policy: TrustPolicy, claim: Claim, now: dt.datetime) -> Decision:
    """Decide whether *policy* lets the version of *claim* be used at the time *now*.

    What is revoked is refused first. A digest that the caller names or that is pinned stands for a signature; else the
    one rule that covers the name decides, and where none does, nobody is trusted but a directory of this machine. The
    limits of the rule hold in any case.
    """
    rule = policy.rule(claim.reference.name)
    revoked = _revoked(policy, claim)
    if revoked is not None:
        return Decision(reason=revoked.message, rule=rule, refusal=revoked, is_withdrawn=True)
    decision = _vouched(policy, rule, claim, now)
    # Last, since only now what the manifest says is proven.
    limited = _limited(rule, claim) if decision.refusal is None else None
    if limited is None:
        return decision
    return Decision(reason=limited.message, rule=rule, refusal=limited, is_withdrawn=True)


def _vouched(policy: TrustPolicy, rule: Rule | None, claim: Claim, now: dt.datetime) -> Decision:
    """Decide whether a digest, a signature or the place speaks for the version."""
    expected = policy.expected(claim.registry, claim.reference, claim.named)
    if expected is not None and expected != claim.digest:
        error = PolicyError(
            f"`{claim.reference}` in `{claim.registry}` was pinned as {expected} and is now {claim.digest}",
            hint="a published version never changes: ask its publisher what happened before you pin the new one",
        )
        return Decision(reason=error.message, rule=rule, refusal=error, is_alarm=True)
    if expected is not None:
        by = By.PIN if claim.named is None else By.DIGEST
        return Decision(reason=by.value, rule=rule, by=by)
    if rule is None:
        return _without_rule(claim)
    return _by_rule(policy, rule, claim, now)


def narrow(project: TrustPolicy, claim: Claim, now: dt.datetime) -> Decision:
    """Decide whether the policy of a project lets pass what the user's own policy accepts.

    It can only refuse. Where it has rules, what none of them covers is refused; where it has none, only its
    revocations and pins count.
    """
    rule = project.rule(claim.reference.name)
    pinned = project.pin(claim.registry, claim.reference)
    if rule is None and pinned is None and project.rules:
        error = PolicyError(
            f"the project's trust policy has no rule for `{claim.reference.name}`",
            hint="ask who wrote it",
        )
        return Decision(reason=error.message, refusal=error)
    if rule is None and pinned is None and project.revocation(digest=claim.digest) is None:
        return Decision(reason="the project's policy says nothing of it", signers=claim.signers)
    return authorize(project, claim, now)


def _revoked(policy: TrustPolicy, claim: Claim) -> LoraHubError | None:
    revocation = policy.revocation(digest=claim.digest)
    if revocation is None:
        return None
    reason = f" ({printable(revocation.reason)})" if revocation.reason else ""
    return PolicyError(
        f"`{claim.reference}`, {claim.digest}, is revoked{reason}", hint="use another version: your policy forbids this"
    )


def _limited(rule: Rule | None, claim: Claim) -> LoraHubError | None:
    if rule is None or claim.manifest is None:  # without one, it is refused when it is read
        return None
    manifest = claim.manifest
    version = claim.reference.version or (manifest.reference.version if manifest.reference else None)
    if version is None and rule.min_version is not None:
        return PolicyError(
            f"`{claim.reference}` has no version, the rule for `{rule.scope}` allows at least {rule.min_version}",
            hint="use a published version, or change the rule in your trust policy",
        )
    found = [
        ("version", version, rule.min_version, "at least") if version and rule.min_version else None,
        ("r", manifest.lora.r, rule.max_r, "at most") if rule.max_r else None,
        ("size", manifest.size, rule.max_size, "at most") if rule.max_size else None,
    ]
    for what, value, limit, side in filter(None, found):
        is_within = value >= limit if side == "at least" else value <= limit  # type: ignore[operator]
        if not is_within:
            return PolicyError(
                f"`{claim.reference}` has {what} {value}, the rule for `{rule.scope}` allows {side} {limit}",
                hint="use another version, or change the rule in your trust policy",
            )
    return None


def _without_rule(claim: Claim) -> Decision:
    if not claim.is_remote:
        return Decision(reason=By.PLACE.value, by=By.PLACE)
    error = UntrustedError(
        f"`{claim.reference}` in `{claim.registry}` is {_signed_by(claim)}, and no rule covers its name. "
        f"It is {summary(claim.manifest)}, {claim.digest}",
        hint=_how_to_trust(claim),
    )
    return Decision(reason=error.message, refusal=error)


def _by_rule(policy: TrustPolicy, rule: Rule, claim: Claim, now: dt.datetime) -> Decision:
    signers, problems = counted(policy, rule, claim.signers, now)
    if len(signers) >= rule.threshold:
        reason = f"the rule for `{rule.scope}` trusts {', '.join(map(str, signers))}"
        return Decision(reason=reason, rule=rule, signers=signers, by=By.RULE)
    where = f"`{claim.reference}` in `{claim.registry}`"
    needed = (
        f"the rule for `{rule.scope}` needs {rule.threshold} of its {len(rule.keys) + len(rule.identities)} signers"
    )
    error: LoraHubError
    if problems:
        error = PolicyError(f"{where}: {'; '.join(problems)}, and {needed}", hint="ask its publisher to sign it anew")
    elif signers:
        error = UntrustedError(
            f"{where} is signed by {', '.join(map(str, signers))} alone, and {needed}",
            hint="ask the others to sign it (`lora-hub sign --add`)",
        )
    else:
        error = UntrustedError(
            f"{where} is {_signed_by(claim)}, and {needed}. It is {summary(claim.manifest)}, {claim.digest}",
            hint=_how_to_trust(claim),
        )
    return Decision(reason=error.message, rule=rule, signers=signers, refusal=error)


def counted(
    policy: TrustPolicy, rule: Rule, signers: Iterable[Signer], now: dt.datetime
) -> tuple[tuple[Signer, ...], list[str]]:
    """Return those of *signers* that count under *rule*, each once, and why others that it names do not."""
    keys = {key.fingerprint: key for key in policy.keys_of(rule)}
    counting, problems = [], []
    for signer in dict.fromkeys(signers):
        key = keys.get(signer.who) if isinstance(signer.who, str) else None
        if key is None and signer.who not in rule.identities:
            continue
        if key is not None and policy.revocation(key=key.fingerprint) is not None:
            problems.append(f"{signer} is revoked")
        elif key is not None and not _is_within(key.not_before, now, key.not_after):
            problems.append(f"{signer} is not valid now, {_window(key)}")
        else:
            counting.append(signer)
    return tuple(counting), problems


def _window(key: Key) -> str:
    start = f"from {key.not_before}" if key.not_before else ""
    end = f"until {key.not_after}" if key.not_after else ""
    return f"only {' '.join(filter(None, (start, end)))}"


def _is_within(start: dt.datetime | None, now: dt.datetime, end: dt.datetime | None) -> bool:
    return (start is None or start <= now) and (end is None or now <= end)


def _signed_by(claim: Claim) -> str:
    others = [*claim.signers, *claim.strangers]
    return f"signed by {', '.join(map(str, others))}" if others else "unsigned"


def _how_to_trust(claim: Claim) -> str:
    """Return the lines that trust exactly what was shown; whether to paste one is for the user to find out."""
    pin = pin_command(claim.registry, claim.reference, claim.digest)
    ways = [f'if you trust it, run `{pin}`, or in Python pass `digest="{claim.digest}"`']
    if claim.is_directory:
        ways = ["`--key FILE` names the public key that must have signed it"]
    for signer in (*claim.signers, *claim.strangers)[:1]:
        is_known = isinstance(signer.who, Identity) or signer.who in claim.carried
        how = f"run `{_add_command(claim, signer.who)}`" if is_known else "get the public key from them, and add it"
        if signer.who is None:
            how = "install `lora-hub[sigstore]` to see who that is"
        ways.insert(0, f"if you trust who signed it, {how}")
    return "; ".join(ways)


def _add_command(claim: Claim, who: str | Identity | None) -> str:
    if isinstance(who, Identity):
        signer = f"--identity {shlex.quote(who.identity)} --issuer {shlex.quote(who.issuer)}"
    elif claim.is_directory:
        signer = f"{who} --from {shlex.quote(claim.registry)}"
    else:
        signer = f"{who} --from {claim.reference}{_registry_option(claim.registry)}"
    return f"lora-hub trust add {signer} --scope {claim.reference.name}"


def pin_command(registry: str, reference: AdapterRef, digest: str) -> str:
    """Return the one line that pins exactly what was shown."""
    return f"lora-hub trust pin {reference} --digest {digest}{_registry_option(registry)}"


def _registry_option(registry: str) -> str:
    return "" if registry == "hf://" else f" --registry {shlex.quote(registry)}"


def summary(manifest: Manifest | None) -> str:
    """Return what an adapter says of itself, in one line."""
    if manifest is None:
        return "no adapter that could be read"
    base = printable(manifest.base.repo) if manifest.base.repo else "an unnamed base"
    return f"a LoRA adapter of {base}, r {manifest.lora.r}, {manifest.lora.parameters:,} parameters"
