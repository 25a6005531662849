"""Who signed a version: its bundles, verified with the keys that the policies have for its name, and with no others."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from lora_hub.documents.authorization import Claim, Decision, authorize, narrow
from lora_hub.documents.bundle import Bundle
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.signers import Identity, PublicKey, Signer
from lora_hub.documents.statement import SignedFiles
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.errors import IntegrityError, LoraHubError, MalformedError
from lora_hub.reference import AdapterRef

# A keyless signer whose name nobody asked for; the extra `sigstore` can tell it.
SOMEBODY = Signer(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What speaks for a version, as it lies in a registry or in the store.

    Attributes:
        registry: The URL of the registry.
        is_remote: Whether others may write there.
        reference: An exact version or a commit.
        digest: Of the manifest.
        manifest: The manifest, parsed when it is asked for.
        bundles: The signatures by file name, read when they are asked for.
        source: What to call the version in an error.
        is_directory: Whether ``registry`` is but a directory that holds the files of this one version.
    """

    registry: str
    is_remote: bool
    reference: AdapterRef
    digest: str
    manifest: Callable[[], Manifest]
    bundles: Callable[[], Mapping[str, Bytes]]
    source: str
    is_directory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A decision, and the bundles that were verified for it, by file name."""

    decision: Decision
    bundles: Mapping[str, Bytes]


def judge(
    evidence: Evidence, policy: TrustPolicy, project: TrustPolicy, now: dt.datetime, *, named: str | None
) -> Verdict:
    """Verify what must be verified of *evidence*, and decide whether it may be used.

    Where a digest is named or pinned, no signature is read, unless the project's policy asks for one.

    Raises:
        IntegrityError: A signature of a trusted key is not over this manifest.
        DocumentError: A bundle is malformed.
    """
    name = evidence.reference.name
    is_pinned = policy.expected(evidence.registry, evidence.reference, named) is not None
    by_signature = not is_pinned and (evidence.is_remote or policy.rule(name) is not None)
    files = evidence.bundles() if by_signature or project.rule(name) is not None else {}
    examined = _examine(evidence, files, (policy, project))
    claim = Claim(
        registry=evidence.registry,
        is_remote=evidence.is_remote,
        reference=evidence.reference,
        digest=evidence.digest,
        manifest=_manifest(evidence, examined, is_pinned=is_pinned),
        named=named,
        signers=_once(examined.signers),
        strangers=_once(examined.strangers),
        is_directory=evidence.is_directory,
    )
    decision = authorize(policy, claim, now)
    if decision.refusal is not None and files:
        # It is refused: only now is anything that a stranger signed looked at, to say how they could be trusted.
        decision = authorize(policy, _introduced(claim, files, examined), now)
    if decision.refusal is None:
        decision = _narrowed(decision, policy, project, claim, now)
    return Verdict(decision=decision, bundles={file: files[file] for file in examined.signers})


def _narrowed(
    decision: Decision, policy: TrustPolicy, project: TrustPolicy, claim: Claim, now: dt.datetime
) -> Decision:
    """Return *decision*, or the refusal of the project: what it revokes does not count, and its own rules hold too."""
    revoking = replace(policy, revoked=(*policy.revoked, *project.revoked))
    for narrower in (authorize(revoking, claim, now), narrow(project, claim, now)):
        if narrower.refusal is not None:
            return replace(narrower, is_withdrawn=False)  # the user did not take it back
    return decision


@dataclass(frozen=True, slots=True, kw_only=True)
class _Examined:
    """Whose bundles lie beside a version, by file name: those that were verified, and those of strangers."""

    signers: Mapping[str, Signer]
    strangers: Mapping[str, Signer]


def _examine(evidence: Evidence, files: Mapping[str, Bytes], policies: Iterable[TrustPolicy]) -> _Examined:
    rules = [(policy, rule) for policy in policies if (rule := policy.rule(evidence.reference.name)) is not None]
    keys = {fingerprint: key for policy, rule in rules for fingerprint, key in policy.public_keys(rule).items()}
    identities = {identity for _, rule in rules for identity in rule.identities}
    signers: dict[str, Signer] = {}
    strangers: dict[str, Signer] = {}
    for file, content in files.items():
        try:
            signer, payload = prove(content, keys, identities)
            if payload is not None:
                SignedFiles.parse(payload).check(evidence.digest, evidence.manifest, source=evidence.source)
        except (MalformedError, IntegrityError) as error:
            raise error.within(f"`{file}` of `{evidence.source}`") from error
        (strangers if payload is None else signers)[file] = signer
    return _Examined(signers=signers, strangers=strangers)


def _manifest(evidence: Evidence, examined: _Examined, *, is_pinned: bool) -> Manifest | None:
    """Return the manifest; None if it is none, and nobody vouches for it anyhow.

    Raises:
        IntegrityError: What was signed has no name, so that it could be served under any.
    """
    try:
        manifest = evidence.manifest()
    except MalformedError:
        if is_pinned or examined.signers:
            raise
        return None
    if examined.signers and manifest.reference is None:
        raise IntegrityError(
            f"what was signed of `{evidence.source}` is a draft: it has no name and no version",
            hint="ask its publisher to publish it with `lora-hub push`, which signs both",
        )
    return manifest


def _once(signers: Mapping[str, Signer]) -> tuple[Signer, ...]:
    return tuple(dict.fromkeys(signers.values()))


def _introduced(claim: Claim, files: Mapping[str, Bytes], examined: _Examined) -> Claim:
    """Return *claim* with the names of keyless strangers, and with the keys that bundles bring along."""
    strangers = {file: _named(files[file], signer) for file, signer in examined.strangers.items()}
    return replace(claim, strangers=_once(strangers), carried=frozenset(_carried(files.values())))


def _named(content: Bytes, signer: Signer) -> Signer:
    if signer is not SOMEBODY:
        return signer
    from lora_hub.signing.keyless import verified_identity

    with contextlib.suppress(LoraHubError):
        return Signer(verified_identity(bytes(content))[0])
    return signer


def prove(content: Bytes, keys: Mapping[str, PublicKey], identities: Iterable[Identity]) -> tuple[Signer, bytes | None]:
    """Return who signed the bundle *content*, and its payload if that is one of *keys* or *identities*, verified."""
    bundle = Bundle.parse(content)
    if bundle.hint is None:
        return _prove_keyless(bytes(content), set(identities))
    if bundle.hint not in keys:
        return Signer(bundle.hint), None
    from lora_hub.signing.verify import verify_signature

    verify_signature(keys[bundle.hint], bundle)
    return Signer(bundle.hint), bundle.payload


def carried_key(content: Bytes) -> PublicKey | None:
    """Return the public key of *content*, a bundle, that its statement brings along, if it does.

    Raises:
        DocumentError: It is no bundle, or its statement is none.
        IntegrityError: The key did not sign it.
    """
    bundle = Bundle.parse(content)
    pem = SignedFiles.parse(bundle.payload).public_key if bundle.hint is not None else None
    key = PublicKey.parse(pem) if pem is not None else None
    if key is None or key.fingerprint != bundle.hint:
        return None
    from lora_hub.signing.verify import verify_signature

    verify_signature(key, bundle)
    return key


def _carried(bundles: Iterable[Bytes]) -> Iterator[str]:
    """Yield the fingerprints of the keys that *bundles* bring along, as far as they do."""
    for content in bundles:
        with contextlib.suppress(MalformedError, IntegrityError):
            key = carried_key(content)
            if key is not None:
                yield key.fingerprint


def _prove_keyless(content: bytes, identities: set[Identity]) -> tuple[Signer, bytes | None]:
    if not identities:  # then it is somebody else's business, whatever it is worth
        return SOMEBODY, None
    from lora_hub.signing.keyless import verified_identity

    identity, payload = verified_identity(content)
    return Signer(identity), payload if identity in identities else None
