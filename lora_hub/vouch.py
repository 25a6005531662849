"""Who vouches for an adapter: keys, signatures, and whether they are good."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lora_hub import reference as references
from lora_hub.adapter_directory import read_bundles, read_files, read_with_files
from lora_hub.documents.bundle import SIGNATURE_NAME, further_name
from lora_hub.documents.fields import Bytes, sha256
from lora_hub.documents.manifest import MANIFEST_NAME, Manifest, publish
from lora_hub.documents.signers import PublicKey
from lora_hub.documents.statement import SignedFiles, Yank, yank_name
from lora_hub.documents.trust_entries import Key, Rule, is_scope
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.documents.verified_adapter import VerifiedAdapter, manifest_digest
from lora_hub.documents.verified_adapter import verify as verify_files
from lora_hub.errors import DocumentError, IntegrityError, RegistryError, UntrustedError, UsageError
from lora_hub.files import machine_errors, write_files
from lora_hub.reference import AdapterRef, PathLike, ReferenceLike, as_reference, exact_version
from lora_hub.registry import pull as pulls
from lora_hub.registry.find import find
from lora_hub.registry.locate import RegistryLike, as_registry, online_registry
from lora_hub.registry.network import is_offline
from lora_hub.registry.proof import Evidence, judge
from lora_hub.registry.push import now
from lora_hub.registry.signatures import add_signature, signatures_over
from lora_hub.registry.store import default_store
from lora_hub.registry.terms import Terms, current_terms
from lora_hub.registry.trust_file import default_trust
from lora_hub.signing.key_ring import default_key_ring, signing_key
from lora_hub.signing.keys import Passphrase, PrivateKey, passphrase_from_environment
from lora_hub.trust import check_can_trust, read_public_key, trust_key

# Keys


def generate_key(org: str, *, curve: str = "P-256", passphrase: str | None = None) -> PublicKey:
    """Make the key that signs the adapters of *org*, trust it for ``org/*``, and return its public half.

    Args:
        org: The organisation or user on the Hub.
        curve: ``P-256``, ``P-384`` or ``P-521``.
        passphrase: What the private key is encrypted with; None leaves it open to whoever may read the file.

    Raises:
        UsageError: There is a key for *org*: none is ever replaced.
    """
    scope = f"{org}/*"
    if not is_scope(scope):
        raise UsageError(f"{org!a} is no organisation or user", hint="name whose adapters the key is to sign")
    default_key_ring().check_free(org)
    key = PrivateKey.generate(curve)
    check_can_trust(key.public, scope=scope, name=org)  # before there is a key that nobody trusts
    default_key_ring().add(org, key, passphrase=passphrase)
    trust_key(key.public, scope=scope, name=org)
    return key.public


def keys() -> dict[str, PublicKey]:
    """Return the public keys of this user, by name."""
    ring = default_key_ring()
    return {name: ring.public(name) for name in ring.names()}


def public_key(name: str) -> PublicKey:
    """Return the public key that is called *name*."""
    return default_key_ring().public(name)


# Signatures


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What `sign` did: the version that the signature is about, who signed, and the file that it wrote."""

    reference: AdapterRef
    signer: str
    path: Path


def sign(
    directory: PathLike,
    reference: ReferenceLike | None = None,
    *,
    key: PathLike | None = None,
    keyless: bool = False,
    add: bool = False,
    passphrase: Passphrase = passphrase_from_environment,
) -> Signed:
    """Sign the adapter in *directory*, so that `push` publishes it with this signature.

    Name and version are a part of what is signed: *reference* completes the manifest in *directory* that has none yet.

    Args:
        directory: An adapter; the manifest, if it was a draft, and ``model.sig`` are written there.
        reference: ``org/task@1.2.0``; may be left out where the manifest says so already.
        key: The file of a private key; by default ``LORA_HUB_KEY``, else the key of ``org``.
        keyless: Whether to sign with an OpenID identity (the extra ``sigstore``), which is published in a public log.
        add: Whether to sign beside those who signed already.
        passphrase: How to get the key's passphrase, if it is encrypted.

    Raises:
        UsageError: No name and version, no key, or signed already and *add* is False.
    """
    place = Path(directory)
    adapter, files = read_with_files(place)
    exact = adapter.manifest.reference if reference is None else as_reference(reference)
    if exact is None:
        raise UsageError(f"`{place}` has no name and version yet", hint="say which: `--as org/task@1.0.0`")
    exact_version(exact)
    draft = bytes(files.get(MANIFEST_NAME, adapter.manifest.to_bytes()))
    manifest = draft if exact == adapter.manifest.reference else publish(draft, reference=exact, created=now())
    bundles = read_bundles(place)
    if signatures_over(draft, bundles, default_trust().read().public_keys(), source=str(place)) != bundles:
        raise IntegrityError(f"`{place}` has signatures of something else", hint="remove them, and sign it anew")
    if bundles and manifest != draft:
        raise UsageError(f"`{place}` is signed as {adapter.manifest.reference}", hint="remove its signatures first")
    if bundles and not add:
        raise UsageError(f"`{place}` is signed already", hint="`--add` adds your signature to it")
    name, content, signer = (
        _sign_keyless(bundles, manifest) if keyless else _sign(bundles, manifest, exact, key, passphrase)
    )
    with machine_errors():
        write_files(place, {MANIFEST_NAME: manifest, name: content})
    return Signed(reference=exact, signer=signer, path=place / name)


def _sign(
    bundles: dict[str, Bytes], manifest: bytes, exact: AdapterRef, key: PathLike | None, passphrase: Passphrase
) -> tuple[str, Bytes, str]:
    private = _signing_key(exact, key, passphrase)
    signed = add_signature(bundles, manifest, private)
    new = [name for name in signed if name not in bundles]
    if not new:
        raise UsageError(f"key {private.public.fingerprint} signed it already", hint="nothing is to be done")
    return new[0], signed[new[0]], f"key {private.public.fingerprint}"


def _sign_keyless(bundles: dict[str, Bytes], manifest: bytes) -> tuple[str, Bytes, str]:
    from lora_hub.signing.keyless import sign_keyless, verified_identity

    if is_offline():
        raise RegistryError(
            "keyless signing needs the network, and HF_HUB_OFFLINE forbids it", hint="unset it, or use a key"
        )
    content = sign_keyless(SignedFiles.of(manifest, Manifest.parse(manifest)).to_bytes())
    name = further_name(sha256(content)) if SIGNATURE_NAME in bundles else SIGNATURE_NAME
    return name, content, str(verified_identity(content)[0])


def _signing_key(exact: AdapterRef, key: PathLike | None, passphrase: Passphrase) -> PrivateKey:
    private = signing_key(exact.org, named=None if key is None else Path(key), passphrase=passphrase)
    if private is None:
        raise UsageError(
            f"there is no key to sign for `{exact.org}`", hint=f"make it with `lora-hub key generate {exact.org}`"
        )
    return private


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A proven adapter, why it may be used, and why its publisher asks not to, if that is so."""

    adapter: VerifiedAdapter
    reason: str
    yanked: str | None = None


def verify(source: PathLike | AdapterRef, *, registry: RegistryLike = None, key: PathLike | None = None) -> Verified:
    """Verify the adapter that *source*, a directory or a reference, names as if it came from a stranger.

    Args:
        source: A directory, or a reference, whose files are brought into the local store.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.
        key: The file of a public key that must have signed it; by default the trust policy decides.

    Raises:
        UntrustedError: It is not signed by somebody who is trusted for its name, and not pinned.
        IntegrityError: Signature, manifest and files do not belong together.
        PolicyError: It is revoked, or beyond a limit.
        MalformedError: It is no adapter that could ever be applied.
    """
    terms = dataclasses.replace(current_terms(), is_strict=True)
    if key is not None:
        terms = dataclasses.replace(terms, policy=_only(read_public_key(key), terms.policy))
    named = references.parse(source)
    if isinstance(named, Path):
        return _verify_directory(named, terms)
    pulled = pulls.pull(named, as_registry(registry), default_store(), terms)
    if key is not None and not pulled.adapter.signers:
        raise UntrustedError(
            f"`{named}` was found by its digest, and no signature was looked at", hint="name its version instead"
        )
    return Verified(adapter=pulled.adapter, reason=pulled.reason, yanked=pulled.yanked)


def _only(key: PublicKey, policy: TrustPolicy) -> TrustPolicy:
    """Return a policy that trusts *key* alone, and nothing that *policy* revokes."""
    rule = Rule(scope="*", keys=("given",))
    return TrustPolicy(keys=(Key(name="given", public=key),), rules=(rule,), revoked=policy.revoked)


def _verify_directory(directory: Path, terms: Terms) -> Verified:
    files, hashed = read_files(directory)
    content = bytes(files.get(MANIFEST_NAME, b""))
    manifest = Manifest.parse(content) if content else None
    if manifest is None or manifest.reference is None:
        verify_files(files, source=str(directory), hashed=hashed)  # if it is an adapter at all
        raise UntrustedError(f"`{directory}` is an unsigned draft", hint="sign it with `lora-hub sign --as`")
    evidence = Evidence(
        registry=str(directory.absolute()),
        is_remote=True,
        is_directory=True,
        reference=manifest.reference,
        digest=manifest_digest(content),
        manifest=lambda: manifest,
        bundles=lambda: read_bundles(directory),
        source=str(directory),
    )
    decision = judge(evidence, terms.policy, terms.project, terms.now, named=None).decision
    decision.require()
    adapter = verify_files(files, source=str(directory), hashed=hashed)
    return Verified(adapter=dataclasses.replace(adapter, signers=decision.signers), reason=decision.reason)


def yank(
    reference: ReferenceLike,
    *,
    reason: str = "",
    registry: RegistryLike = None,
    key: PathLike | None = None,
    passphrase: Passphrase = passphrase_from_environment,
) -> Yank:
    """Ask, signed, that nobody starts to use the exact version *reference*; who pinned or locked it is warned.

    Raises:
        UsageError: *reference* names no exact version, or there is no key.
        NotFoundError: There is no such version.
    """
    exact = as_reference(reference)
    exact_version(exact)
    opened = online_registry(registry)
    private = _signing_key(exact, key, passphrase)
    published = find(opened, exact)
    published.check_identity()
    statement = Yank(reference=exact, digest=published.digest, created=now(), reason=reason)
    content = _readable(statement)
    from lora_hub.signing.sign import sign as sign_statement

    name = yank_name(exact_version(exact), private.public.fingerprint)
    opened.publish_yank(exact, name, sign_statement(content, private))
    return statement


def _readable(statement: Yank) -> bytes:
    """Return the bytes of *statement*; what nobody could read is not published."""
    try:
        content = statement.to_bytes()
        Yank.parse(content)
    except (DocumentError, UnicodeEncodeError) as error:
        raise UsageError(f"nobody could read that reason: {error}", hint="give another one") from error
    return content
