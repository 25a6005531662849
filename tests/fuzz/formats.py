"""What must hold of each format whatever its bytes are: no errors but our own, and nothing signed that differs."""

from __future__ import annotations

import contextlib
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, deserialize

from fuzz import specimens
from fuzz.mutations import BUNDLE, JSON, SAFETENSORS, TOML, Mutation
from fuzz.specimens import OTHER, OWN, REFERENCE, SignedVersion, accept, public_key, sign
from lora_hub.documents.bundle import Bundle
from lora_hub.documents.lock_file import LockFile
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.recipe import Recipe
from lora_hub.documents.seen import Seen
from lora_hub.documents.signers import Signer
from lora_hub.documents.statement import SignedFiles, Yank
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.documents.verified_adapter import VerifiedAdapter, verify
from lora_hub.errors import LoraHubError
from lora_hub.reference import AdapterRef

REFUSALS = frozenset({5, 6, 7, 8})  # exit codes: not trusted, does not match, forbidden, malformed


class ViolationError(AssertionError):
    """What must never happen happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One kind of document.

    Attributes:
        seeds: Sound ones; the first is accepted as it is.
        mutation: How it is changed.
        read: Reads one in all ways there are and returns it if it is accepted; raises what they raise, or a
            `ViolationError`.
    """

    seeds: Callable[[], tuple[bytes, ...]]
    mutation: Mutation
    read: Callable[[bytes], object]

    def mutant(self, seed: object) -> bytes:
        """Return the document that *seed* makes."""
        numbers = Random(f"{seed}")
        seeds = self.seeds()
        return self.mutation(numbers.choice(seeds), seeds, numbers)

    def is_accepted(self, content: bytes) -> bool:
        """Whether *content* is accepted; raise whatever is no refusal in our own words."""
        try:
            self.read(content)
        except LoraHubError as error:
            _check_refusal(error)
            return False
        return True


def _check_refusal(error: LoraHubError) -> None:
    if error.exit_code not in REFUSALS or not error.hint:
        raise ViolationError(f"a refusal with exit code {error.exit_code} and the hint {error.hint}") from error
    for character in str(error):
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}:
            raise ViolationError(f"U+{ord(character):04X} of the document stands in the error") from error


def _must(*, hold: bool, what: str) -> None:
    if not hold:
        raise ViolationError(what)


def _must_be_refused(read: Callable[[], object], what: str) -> None:
    try:
        read()
    except LoraHubError as error:
        _check_refusal(error)
    else:
        raise ViolationError(f"{what} is accepted")


def _must_be_the_same(parse: Callable[[bytes], object], document: Any) -> None:
    _must(hold=parse(document.to_bytes()) == document, what="what was read is another document when it is written")


# Signed


def read_bundle(content: bytes) -> Bundle:
    """A bundle is accepted only with the very statement that was signed, and only from who signed it."""
    version = specimens.version()
    signers = accept(version.manifest, content)
    bundle, signed = Bundle.parse(content), Bundle.parse(version.bundle)
    _must(hold=bundle.payload == signed.payload, what="another statement counts as signed")
    _must(hold=signers == (Signer(public_key(OWN).fingerprint),), what=f"it counts as signed by {signers}")
    return bundle


def read_statement(content: bytes) -> SignedFiles:
    """Whatever the trusted key signs, the version is accepted only if the statement is about its very files."""
    version = specimens.version()
    accept(version.manifest, sign(content))
    stated = SignedFiles.parse(content)
    resources = json.loads(content)["predicate"]["resources"]  # read by somebody else
    digests = {entry["name"]: entry["digest"] for entry in resources}
    ours = SignedFiles.parse(Bundle.parse(version.bundle).payload).digests
    _must(hold=stated.digests == digests == ours, what="a statement about other files is accepted")
    return stated


def read_yank(content: bytes) -> Yank:
    """A statement that a version is yanked says one thing, and never passes for a signature."""
    yank = Yank.parse(content)
    _must_be_refused(lambda: SignedFiles.parse(content), "a yank in the place of a signature")
    _must_be_the_same(Yank.parse, yank)
    return yank


def read_manifest(content: bytes) -> Manifest:
    """A manifest is accepted as signed only if it is the very one; as a draft, only if it is that of the files."""
    version = specimens.version()
    if content != version.manifest:
        _must_be_refused(lambda: accept(content, version.bundle), "a manifest that was not signed")
    manifest = Manifest.parse(content)
    _must_be_the_same(Manifest.parse, manifest)
    if manifest.lineage is not None:
        with contextlib.suppress(LoraHubError):
            manifest.lineage.to_recipe()
    files = specimens.sliced_version() if manifest.lora.slices else version
    adapter = verify({**files.unsigned, MANIFEST_NAME: content}, source="here")
    _must(hold=adapter.manifest.files == Manifest.parse(files.manifest).files, what="it is one of other files")
    return manifest


# Files that a manifest describes


def read_config(content: bytes) -> VerifiedAdapter:
    """A config is accepted beside a manifest only if it is the one described there."""
    return _read_file(CONFIG_NAME, content)


def read_weights(content: bytes) -> VerifiedAdapter:
    """Weights are accepted beside a manifest only if they are its own; else only if safetensors reads no others."""
    adapter = _read_file(WEIGHTS_NAME, content)
    with contextlib.suppress(SafetensorError):  # it knows no number -0
        theirs = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in deserialize(content)}
        ours = {name: (tensor.dtype, tensor.shape) for name, tensor in adapter.tensors.items()}
        _must(hold=ours == theirs, what="safetensors reads other tensors")
    return adapter


def _read_file(name: str, content: bytes) -> VerifiedAdapter:
    version = specimens.version()
    changed = {**version.unsigned, name: content}
    if content != version.files[name]:
        _must_be_refused(lambda: verify(changed, source="here"), "a file that is not the one of the manifest")
    adapter = verify({key: file for key, file in changed.items() if key != MANIFEST_NAME}, source="here")
    _must(hold=adapter.buffer is changed[WEIGHTS_NAME], what="the buffer is not the one that was read")
    return adapter


# Documents of this user


def read_policy(content: bytes) -> TrustPolicy:
    """A policy is read, asked and written again; written, it says the same."""
    policy = TrustPolicy.parse(content)
    text = "\n".join(entry.to_toml() for entry in policy.entries)
    _must(hold=TrustPolicy.parse(f"version = 1\n\n{text}".encode()) == policy, what="written, it says another thing")
    version = specimens.version()
    decision = specimens.judged(version.manifest, version.bundle, policy).decision
    if decision.refusal is None:
        _must(hold=decision.is_pinned or decision.rule in policy.rules, what="nothing speaks for what is accepted")
    else:
        _check_refusal(decision.refusal)
    return policy


def read_seen(content: bytes) -> Seen:
    """A memory is read, asked and written again; written, it says the same."""
    seen = Seen.parse(content)
    _must_be_the_same(Seen.parse, seen)
    seen.versions("hf://", AdapterRef.parse("org/task"))
    return seen


def read_lock(content: bytes) -> LockFile:
    """A lock file is read, asked and written again; written, it says the same."""
    lock = LockFile.parse(content)
    _must_be_the_same(LockFile.parse, lock)
    for entry in lock.entries:
        _must(hold=lock.entry(AdapterRef.parse(entry.reference)) == entry, what="it does not find its own entry")
        _must(hold=entry.exact.name == AdapterRef.parse(entry.reference).name, what="an entry is of another adapter")
    return lock


def read_recipe(content: bytes) -> Recipe:
    """A recipe is read, recorded and read again, and then says the same; so it does where a lineage holds it."""
    recipe = Recipe.parse(content)
    recorded = json.loads(json.dumps(recipe.to_json(), allow_nan=False))
    _must(hold=Recipe.from_json(recorded) == recipe, what="what is recorded is another recipe")
    for layer in recipe.layers:
        layer.covers("model.layers.0.self_attn.q_proj")
    return recipe


def _yank() -> bytes:
    digest = specimens.version().digest
    return Yank(reference=REFERENCE, digest=digest, created=specimens.CREATED, reason="it swears").to_bytes()


def _both(pick: Callable[[SignedVersion], bytes]) -> Callable[[], tuple[bytes, ...]]:
    return lambda: (pick(specimens.version()), pick(specimens.sliced_version()))


def _manifests() -> tuple[bytes, ...]:
    return specimens.version().manifest, specimens.sliced_version().manifest, specimens.composed_manifest()


def _bundles() -> tuple[bytes, ...]:
    payload = Bundle.parse(specimens.version().bundle).payload
    return specimens.version().bundle, sign(payload, OTHER), sign(_yank()), specimens.sliced_version().bundle


FORMATS: Mapping[str, Format] = {
    "bundle": Format(seeds=_bundles, mutation=BUNDLE, read=read_bundle),
    "statement": Format(
        seeds=lambda: (Bundle.parse(specimens.version().bundle).payload, _yank()), mutation=JSON, read=read_statement
    ),
    "yank": Format(
        seeds=lambda: (_yank(), Bundle.parse(specimens.version().bundle).payload), mutation=JSON, read=read_yank
    ),
    "manifest": Format(seeds=_manifests, mutation=JSON, read=read_manifest),
    "config": Format(seeds=_both(lambda version: version.config), mutation=JSON, read=read_config),
    "weights": Format(seeds=_both(lambda version: version.weights), mutation=SAFETENSORS, read=read_weights),
    "policy": Format(seeds=lambda: (specimens.trust_policy(),), mutation=TOML, read=read_policy),
    "seen": Format(seeds=lambda: (specimens.seen(),), mutation=JSON, read=read_seen),
    "lock": Format(seeds=lambda: (specimens.lock_file(),), mutation=JSON, read=read_lock),
    "recipe": Format(seeds=lambda: (specimens.RECIPE,), mutation=TOML, read=read_recipe),
}
