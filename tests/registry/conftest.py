"""What the tests of registries and of the store share."""

import pytest
from adapter_files import AdapterFiles, adapter_files
from object_stores import memory_registry, s3, s3_registry, s3_server  # noqa: F401 - fixtures
from tampering import Place, place_of

from lora_hub import vouch
from lora_hub.documents.fields import sha256
from lora_hub.documents.signers import PublicKey
from lora_hub.reference import AdapterRef
from lora_hub.registry import pull as pulls
from lora_hub.registry import push as pushes
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.hub import HubRegistry
from lora_hub.registry.memory import Memory
from lora_hub.registry.network import Retry
from lora_hub.registry.pull import Pulled
from lora_hub.registry.push import Pushed
from lora_hub.registry.registry import Registry
from lora_hub.registry.store import Store
from lora_hub.registry.terms import Terms
from lora_hub.registry.trust_file import TrustFile

# Every registry passes the same suite: to be tested, a new one is added here, as the name of its fixture.
REGISTRIES = ["directory_registry", "hub_over_xet", "hub_over_lfs", "memory_registry", "s3_registry"]


# What a signature, a yank or a memory means does not depend on how bytes travel: there, three of the registries are the
# quick suite's, and the others those of the full counts.
MEANING = {"test_signed.py", "test_yank.py", "test_rollback.py"}
OTHERS = {"hub_over_lfs", "s3_registry"}


@pytest.hookimpl(tryfirst=True)  # before what is not selected goes
def pytest_collection_modifyitems(items) -> None:
    """Leave tests of what signatures mean to the full counts on registries that are like another one."""
    for item in items:
        chosen = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if item.path.name in MEANING and any(isinstance(value, str) and value in OTHERS for value in chosen):
            item.add_marker(pytest.mark.full)


@pytest.fixture(params=REGISTRIES)
def registry(request) -> Registry:
    """An empty registry of each kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def hub_registry(hub) -> HubRegistry:
    """The registry on that Hub, with the client's defaults."""
    return HubRegistry()


@pytest.fixture
def hub_over_xet(hub_registry) -> HubRegistry:
    """The same; its large files travel over Xet."""
    return hub_registry


@pytest.fixture
def hub_over_lfs(hub_registry, monkeypatch) -> HubRegistry:
    """The same, for a client without Xet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return hub_registry


@pytest.fixture
def directory_registry(tmp_path) -> DirectoryRegistry:
    """An empty registry in a directory of this machine."""
    (tmp_path / "registry").mkdir(exist_ok=True)
    return DirectoryRegistry(tmp_path / "registry")


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty store, the one that the command line would use as well."""
    return Store(tmp_path / "home" / "store")


@pytest.fixture
def trust(tmp_path) -> TrustFile:
    """An empty trust policy, the one that the command line would use as well."""
    return TrustFile(tmp_path / "home" / "trust.toml")


@pytest.fixture
def memory(tmp_path) -> Memory:
    """An empty memory, the one that the command line would use as well."""
    return Memory(tmp_path / "home" / "seen.json")


@pytest.fixture
def push_directory(store, trust):
    """Publish what lies in a directory."""

    def push_directory(directory, reference: str, registry: Registry) -> Pushed:
        return pushes.push(directory, AdapterRef.parse(reference), registry, store, trust)

    return push_directory


@pytest.fixture
def push(tmp_path, push_directory):
    """Publish an adapter that is written for the purpose; its numbers depend on *seed*."""

    def push(registry: Registry, reference: str, adapter: AdapterFiles | None = None, *, seed: int = 0) -> Pushed:
        directory = tmp_path / "pushed" / f"{sha256(reference.encode())[:12]}-{seed}"
        (adapter or adapter_files(seed=seed)).write(directory)
        return push_directory(directory, reference, registry)

    return push


@pytest.fixture
def pull(store, trust, memory):
    """Pull a reference into the store, as the policy allows it."""

    def pull(registry: Registry, reference: str, into: Store = store, **options) -> Pulled:
        terms = Terms(memory=memory, policy=trust.read(), offline=options.pop("offline", False))
        return pulls.pull(AdapterRef.parse(reference), registry, into, terms, **options)

    return pull


@pytest.fixture
def place(registry, request) -> Place:
    """What lies in the registry, for an attacker."""
    return place_of(registry, request)


@pytest.fixture
def impatient(monkeypatch):
    """The network may be used, and whoever tries again waits for a moment only."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("lora_hub.registry.network.RETRY", Retry(tries=3, first=0.01, longest=0.02))
    monkeypatch.setattr("lora_hub.registry.hub.RACES", Retry(tries=6, first=0.01, longest=0.02))


@pytest.fixture
def key_of(become):
    """Be somebody who has a key for `org`, and return its public half."""

    def key_of(name: str) -> PublicKey:
        ring = become(name) / "keys"
        return vouch.public_key("org") if ring.exists() else vouch.generate_key("org")

    return key_of
