"""One sound document of each format, and a version of an adapter that a key signed: the same bytes on every machine."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from dataclasses import dataclass

from adapter_files import (
    CONFIG_NAME,
    HIDDEN,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    AdapterFiles,
    adapter_files,
    fused_adapter_files,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lora_hub.documents.bundle import SIGNATURE_NAME, Bundle
from lora_hub.documents.lineage import Lineage, LineageBase, LineageInput
from lora_hub.documents.lock_file import LockEntry, LockFile
from lora_hub.documents.manifest import Manifest, Slice, SliceGroup, publish
from lora_hub.documents.recipe import Recipe
from lora_hub.documents.seen import Seen, Sight
from lora_hub.documents.signers import Identity, PublicKey, Signer
from lora_hub.documents.statement import SignedFiles
from lora_hub.documents.trust_entries import Key, Pin, Revocation, Rule
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.documents.verified_adapter import manifest_digest, verify
from lora_hub.reference import AdapterRef
from lora_hub.registry.proof import Evidence, Verdict, judge
from lora_hub.signing.sign import pre_authentication
from lora_hub.version import Version

REFERENCE = AdapterRef.parse("org/task@1.2.0")
NOW = dt.datetime(2026, 11, 24, 12, 0, 0, tzinfo=dt.UTC)
CREATED = "2026-11-24T11:00:00Z"


def private_key(number: int) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key whose secret is *number*: anybody's, so good for tests only."""
    return ec.derive_private_key(number, ec.SECP256R1())


def public_key(key: ec.EllipticCurvePrivateKey) -> PublicKey:
    """Return the public half of *key*."""
    return PublicKey.parse(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


OWN, OTHER = private_key(1000003), private_key(1000033)


def sign(payload: bytes, key: ec.EllipticCurvePrivateKey = OWN) -> bytes:
    """Return the bundle of *payload* as `lora_hub` writes it, but with the same signature each time (RFC 6979)."""
    signature = key.sign(pre_authentication(payload), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return Bundle(hint=public_key(key).fingerprint, payload=payload, signature=signature).to_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedVersion:
    """The files of one version, and the bundle over them."""

    config: bytes
    weights: bytes
    manifest: bytes
    bundle: bytes

    @property
    def files(self) -> dict[str, bytes]:
        """What is published, by name."""
        return {**self.unsigned, SIGNATURE_NAME: self.bundle}

    @property
    def unsigned(self) -> dict[str, bytes]:
        """The same without the bundle."""
        return {CONFIG_NAME: self.config, WEIGHTS_NAME: self.weights, MANIFEST_NAME: self.manifest}

    @property
    def digest(self) -> str:
        """The identity of the version."""
        return manifest_digest(self.manifest)


def signed_version(
    adapter: AdapterFiles | None = None, *, reference: AdapterRef = REFERENCE, key: ec.EllipticCurvePrivateKey = OWN
) -> SignedVersion:
    """Return *adapter*, or a small one, as the version *reference*, signed with *key*."""
    files = (adapter or adapter_files()).files()
    draft = verify(files, source="a specimen").manifest
    manifest = publish(draft.to_bytes(), reference=reference, created=CREATED)
    statement = SignedFiles.of(manifest, Manifest.parse(manifest), public_key=public_key(key).pem)
    return SignedVersion(
        config=files[CONFIG_NAME],
        weights=files[WEIGHTS_NAME],
        manifest=manifest,
        bundle=sign(statement.to_bytes(), key),
    )


@functools.cache
def version() -> SignedVersion:
    """Return the version that the tests change, signed by the key that `POLICY` trusts."""
    return signed_version()


POLICY = TrustPolicy(
    keys=(Key(name="org", public=public_key(OWN)),), rules=(Rule(scope="org/*", keys=("org",)),)
)  # fmt: skip


def judged(manifest: bytes, bundle: bytes, policy: TrustPolicy = POLICY) -> Verdict:
    """Return what is decided of a version with *manifest* and *bundle* in a registry where others may write."""
    evidence = Evidence(
        registry="hf://",
        is_remote=True,
        reference=REFERENCE,
        digest=manifest_digest(manifest),
        manifest=lambda: Manifest.parse(manifest),
        bundles=lambda: {SIGNATURE_NAME: bundle},
        source=f"{REFERENCE} in hf://",
    )
    return judge(evidence, policy, TrustPolicy(), NOW, named=None)


def accept(manifest: bytes, bundle: bytes, policy: TrustPolicy = POLICY) -> tuple[Signer, ...]:
    """Return who signed, of those who count; raise why it is refused."""
    decision = judged(manifest, bundle, policy).decision
    decision.require()
    return decision.signers


# Documents of this user

_PLACES = ("hf://", "file:///srv/adapters", "s3://bucket/prefix")
_DIGESTS = [f"sha256:{digit * 64}" for digit in "0a5f"]


@functools.cache
def trust_policy() -> bytes:
    """Return a policy that has everything a policy can have, with a remark, as its user might write it."""
    entries = [
        Key(name="alice", public=public_key(OWN), not_before=NOW - dt.timedelta(days=1)),
        Key(name="bob", public=public_key(OTHER), not_after=NOW + dt.timedelta(days=365)),
        Rule(
            scope="org/*",
            keys=("alice", "bob"),
            identities=(Identity(identity="ci@org.example", issuer="https://accounts.example"),),
            threshold=2,
            min_version=Version.parse("1.0.0-rc.1"),
        ),
        Rule(scope="org/task", keys=("alice",), max_r=64, max_size=2**30),
        Rule(scope="*", keys=("bob",)),
        Revocation(key="0" * 64, reason='the laptop was "stolen" \u2014 \N{SNOWMAN}'),
        Revocation(digest=_DIGESTS[0]),
        Pin(registry=_PLACES[0], name="org/task", version="1.2.0", commit="a" * 40, digest=_DIGESTS[1]),
        Pin(registry=_PLACES[1], name="org/task", version="1.2.0", digest=_DIGESTS[2]),
        Pin(registry=_PLACES[0], name="org/plain", commit="b" * 40, digest=_DIGESTS[3]),
    ]
    tables = "\n".join(entry.to_toml() for entry in entries)
    return f"version = 1\n# Alice left in May; see the minutes.\n\n{tables}".encode()


@functools.cache
def seen() -> bytes:
    """Return a memory of some versions and commits."""
    sights = {
        (place, f"org/{task}", at): Sight(digest=digest, is_yanked=at == "1.0.0")
        for place, digest in zip(_PLACES, _DIGESTS, strict=False)
        for task in ("task", "plain")
        for at in ("1.0.0", "1.2.0-rc.1", "c" * 40)
    }
    return Seen(sights=sights).to_bytes()


@functools.cache
def lock_file() -> bytes:
    """Return a lock file of a version and of a commit."""
    files = Manifest.parse(version().manifest).files
    entries = (
        LockEntry(
            reference="org/task@^1.2",
            registry=_PLACES[0],
            digest=version().digest,
            files=files,
            version="1.2.0",
            commit="d" * 40,
            signer=f"key {public_key(OWN).fingerprint}",
        ),
        LockEntry(reference="org/plain", registry=_PLACES[1], digest=_DIGESTS[1], files=files, commit="e" * 40),
    )
    return LockFile(entries=entries).to_bytes()


@functools.cache
def sliced_version() -> SignedVersion:
    """Return the version of an adapter for q and v of a fused projection, which its manifest cuts up."""
    adapter = fused_adapter_files()
    draft = verify(adapter.files(), source="a specimen").manifest
    r, alpha = draft.lora.r // 2, draft.lora.alpha / 2
    parts = tuple(
        Slice(part=part, r=r, alpha=alpha, rows=((start, start + HIDDEN),))
        for part, start in (("q", 0), ("v", 2 * HIDDEN))
    )
    slices = (SliceGroup(modules=("transformer.h.0.attn.c_attn",), parts=parts),)
    parameters = sum(part.r * (HIDDEN + part.out_features) for part in parts)
    lora = dataclasses.replace(draft.lora, r=r, alpha=alpha, parameters=parameters, slices=slices)
    adapter.manifest = dataclasses.replace(draft, lora=lora).to_bytes()
    return signed_version(adapter)


RECIPE = b"""schema = "lora-hub/recipe/v1"

[[inputs]]
reference = "org/sql@1.2.0"
id = "sql"
weight = 0.7

[[inputs]]
reference = "./chat"
weight = -1

[method]
rule = "ties"
space = "core"
density = 0.5
seed = 7

[output]
rank = "energy:0.9999"
weights = "given"
dtype = "bfloat16"

[[layers]]
match = "*.layers.[0-3].*"
weights = { sql = 0.9 }
"""


@functools.cache
def composed_manifest() -> bytes:
    """Return the manifest of the version, with a lineage."""
    recipe = Recipe.parse(RECIPE)
    sql, chat = (
        LineageInput(id=one.id, weight=one.weight, digest=version().digest, signers=()) for one in recipe.inputs
    )
    lineage = Lineage(
        kind="compose",
        inputs=(dataclasses.replace(sql, name="org/sql", version="1.2.0", signers=("key ab12",)), chat),
        base=LineageBase(repo="org/base", revision="main"),
        recipe=Lineage.recorded(recipe),
        tool="lora-hub 0.1.0",
        measured={"retained_energy": 0.9998, "worst_module": "model.layers.0.self_attn.q_proj"},
        reproducible="rounded",
    )
    return dataclasses.replace(Manifest.parse(version().manifest), lineage=lineage).to_bytes()
