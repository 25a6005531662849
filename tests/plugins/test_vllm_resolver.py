"""The resolver for vLLM, against the interface that vLLM documents; vLLM itself is not installed here."""

import abc
import asyncio
import sys
import types
from dataclasses import dataclass
from importlib.metadata import entry_points

import pytest
from adapter_files import adapter_files
from lora_hub_plugins import vllm_resolver

import lora_hub

BASE = "org/base"


@dataclass
class LoRARequest:
    """The fields that vLLM needs of a request, in its order."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class LoRAResolver(abc.ABC):
    """The abstract class that vLLM calls."""

    @abc.abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return a request, or None if another resolver should be asked."""


@pytest.fixture
def resolvers(monkeypatch):
    """A vLLM that keeps the resolvers that register."""
    registered = {}
    registry = types.SimpleNamespace(register_resolver=registered.__setitem__)
    modules = {
        "vllm": types.ModuleType("vllm"),
        "vllm.lora": types.ModuleType("vllm.lora"),
        "vllm.lora.request": types.SimpleNamespace(LoRARequest=LoRARequest),
        "vllm.lora.resolver": types.SimpleNamespace(LoRAResolver=LoRAResolver, LoRAResolverRegistry=registry),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return registered


@pytest.fixture
def published(tmp_path, monkeypatch):
    """org/task@1.0.0, trained on org/base, in the registry that the environment names."""
    monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "registry"))
    return lora_hub.push(adapter_files().write(tmp_path / "adapter"), "org/task@1.0.0")


@pytest.fixture
def resolver(resolvers, monkeypatch):
    """The resolver, switched on."""
    monkeypatch.setenv("LORA_HUB_VLLM", "1")
    vllm_resolver.register()
    return resolvers["lora-hub"]


def ask(resolver, name, base=BASE):
    return asyncio.run(resolver.resolve_lora(base, name))


def test_vllm_finds_the_plugin():
    """The entry point that vLLM loads names the function that registers."""
    (found,) = entry_points(group="vllm.general_plugins", name="lora_hub")

    assert found.load() is vllm_resolver.register


@pytest.mark.parametrize("value", [None, "", "0", "no"])
def test_it_is_silent_unless_switched_on(monkeypatch, value):
    """Without the switch nothing is registered, and vLLM is not even imported."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    if value is not None:
        monkeypatch.setenv("LORA_HUB_VLLM", value)

    assert vllm_resolver.register() is None


def test_a_reference_is_answered_with_a_proven_directory(resolver, published):
    """The answer is the directory of the version in the store, which PEFT's layout has."""
    request = ask(resolver, "org/task@^1")

    assert request.lora_name == "org/task@^1"
    assert request.lora_path == str(lora_hub.pull("org/task").path)


def test_the_id_is_that_of_the_content(resolver, published):
    """The id is positive, fits 64 bits, and is a function of the digest: the same in every process."""
    ids = {ask(resolver, name).lora_int_id for name in ("org/task", "org/task@1.0.0", f"org/task@{published.digest}")}

    assert ids == {int(published.digest[7:22], 16)}
    assert 0 < ids.pop() < 2**63


@pytest.mark.parametrize("name", ["sql-lora", "./adapter", "/etc", "../x", "org/task/sub", ""])
def test_what_is_no_reference_is_left_to_others(resolver, published, name):
    """A client of the server can name references only, never paths."""
    assert ask(resolver, name) is None


def test_another_base_is_refused(resolver, published, caplog):
    """An adapter of another base is not loaded, and the log says why."""
    assert ask(resolver, "org/task", base="org/other") is None
    assert "org/other" in caplog.text


def test_any_base_compares_nothing(resolvers, published, monkeypatch):
    """Where the base is served from a path, its name can be left uncompared."""
    monkeypatch.setenv("LORA_HUB_VLLM", "any-base")
    vllm_resolver.register()

    assert ask(resolvers["lora-hub"], "org/task", base="/models/base") is not None


def test_what_cannot_be_pulled_is_logged(resolver, published, caplog):
    """What is not there, or not trusted, is not loaded; the server goes on, and the log has the reason and the hint."""
    assert ask(resolver, "org/task@2.0.0") is None
    assert "org/task@2.0.0" in caplog.text
    assert "hint" in caplog.text


def test_registering_twice_is_harmless(resolver, resolvers):
    """VLLM may call the function more than once in a process."""
    vllm_resolver.register()

    assert list(resolvers) == ["lora-hub"]
