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
from lora_hub.errors import IntegrityError, MalformedError, MissingExtraError
from lora_hub.reference import AdapterRef

_SOMEBODY = Signer(Identity(identity="somebody keyless", issuer="pip install 'lora-hub[sigstore]' to see who"))


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
    rules = [(p, rule) for p in (policy, project) if (rule := p.rule(name)) is not None]
    is_pinned = policy.expected(evidence.registry, evidence.reference, named) is not None
    is_needed = bool(rules) or evidence.is_remote if not is_pinned else project.rule(name) is not None
    files = evidence.bundles() if is_needed else {}
    keys = {key.fingerprint: key.public for p, rule in rules for key in p.keys_of(rule)}
    identities = {identity for _, rule in rules for identity in rule.identities}
    signers, strangers, verified = [], [], {}
    for file, content in files.items():
        try:
            signer, payload = prove(content, keys, identities)
            if payload is not None:
                SignedFiles.parse(payload).check(evidence.digest, evidence.manifest, source=evidence.source)
        except (MalformedError, IntegrityError) as error:
            raise error.within(f"`{file}` of `{evidence.source}`") from error
        if payload is None:
            strangers.append(signer)
        else:
            signers.append(signer)
            verified[file] = content
    is_read = is_pinned or bool(signers)  # what nobody vouches for is only described, if it can be
    try:
        manifest = evidence.manifest()
    except MalformedError:
        if is_read:
            raise
        manifest = None
    claim = Claim(
        registry=evidence.registry,
        is_remote=evidence.is_remote,
        reference=evidence.reference,
        digest=evidence.digest,
        manifest=manifest,
        named=named,
        signers=tuple(dict.fromkeys(signers)),
        strangers=tuple(dict.fromkeys(strangers)),
        is_directory=evidence.is_directory,
    )
    policy = replace(policy, revoked=(*policy.revoked, *project.revoked))
    decision = authorize(policy, claim, now)
    if decision.refusal is not None and files:
        # It is refused: only now is anything of a stranger's payload looked at, to say how they could be trusted.
        decision = authorize(policy, replace(claim, carried=frozenset(_carried(files.values()))), now)
    if decision.refusal is None:
        narrowed = narrow(project, claim, now)
        decision = decision if narrowed.refusal is None else narrowed
    return Verdict(decision=decision, bundles=verified)


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
    from lora_hub.signing.keyless import verified_identity

    try:
        identity, payload = verified_identity(content)
    except MissingExtraError:
        if identities:
            raise
        return _SOMEBODY, None
    return Signer(identity), payload if identity in identities else None
