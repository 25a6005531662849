"""What starting costs: counted in modules that are loaded, which are the same on every machine, not in milliseconds."""

import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "cryptography",
    "fsspec",
    "hf_xet",
    "httpx2",
    "huggingface_hub",
    "jsonschema",
    "numpy",
    "peft",
    "pluggy",
    "requests",
    "securesystemslib",
    "sigstore",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "yaml",
}


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after *code*, without those that it starts with."""
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def command(*words: str) -> str:
    return f"from lora_hub.cli import run\nassert run({list(words)!r}) == 0"


def test_import_loads_nothing_but_the_package():
    """`import lora_hub` loads no other module of ours, and no package of anybody else."""
    loaded = modules_after("import lora_hub")

    assert {module for module in loaded if module.startswith("lora_hub")} == {"lora_hub"}
    assert packages(loaded) & (HEAVY | {"click", "platformdirs"}) == set()


@pytest.mark.parametrize(
    "name", ["errors", "AdapterRef", "Architecture", "push", "pull", "sign", "verify", "VerifiedAdapter"]
)
def test_a_name_without_torch_loads_no_torch(name):
    """What needs no torch loads none when it is used."""
    loaded = modules_after(f"from lora_hub import {name}")

    assert packages(loaded) & HEAVY == set()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["push", "--help"],
        ["cache", "--help"],
        ["demo", "--help"],
        ["compose", "--help"],
        ["check", "--help"],
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(words):
    """Help is there at once: neither torch nor a network library, nor plugins, nor the registry."""
    loaded = modules_after(command(*words))

    assert packages(loaded) & HEAVY == set()
    assert {module for module in loaded if module.startswith(("lora_hub.registry", "lora_hub.patch"))} == set()
    assert packages(loaded) & {"lora_hub_plugins", "platformdirs"} == set()


def test_help_in_a_process_of_its_own_loads_nothing_heavy():
    """`python -X importtime -m lora_hub --help` names no heavy module."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lora_hub", "--help"], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}

    assert "lora_hub.cli" in loaded
    assert packages(loaded) & HEAVY == set()


@pytest.mark.parametrize("words", [["schema", "manifest"], ["cache", "list"], ["plugins"]], ids=" ".join)
def test_a_command_without_torch_loads_no_torch(words, home):
    """Commands that move and list bytes load neither torch nor a network library; `plugins` alone loads plugins."""
    loaded = modules_after(command(*words))
    allowed = {"pluggy"} if words == ["plugins"] else set()

    assert packages(loaded) & HEAVY <= allowed


def test_push_and_pull_load_no_torch(home, tmp_path):
    """A whole push and pull without a key load neither torch nor a network library; a push asks plugins for rules."""
    from adapter_files import adapter_files

    adapter = adapter_files().write(tmp_path / "adapter")
    registry = ["--registry", str(tmp_path / "registry")]
    loaded = modules_after(
        f"{command('push', str(adapter), 'org/task@1.0.0', *registry)}\n{command('pull', 'org/task', *registry)}"
    )

    assert packages(loaded) & HEAVY == {"pluggy"}


def test_a_check_loads_no_torch(home, tmp_path):
    """A check of an adapter against a base on this machine loads neither torch nor a network library."""
    from adapter_files import adapter_files
    from checking.base_models import llama

    adapter, base = adapter_files().write(tmp_path / "adapter"), llama().write(tmp_path / "base")
    loaded = modules_after(command("check", str(adapter), "--base", str(base)))

    assert packages(loaded) & HEAVY == {"pluggy"}


def test_signing_and_verifying_load_no_torch(home, tmp_path):
    """Who signs and verifies loads neither torch, nor sigstore, nor a network library."""
    from adapter_files import adapter_files

    adapter = adapter_files().write(tmp_path / "adapter")
    registry = ["--registry", str(tmp_path / "registry")]
    loaded = modules_after(
        "\n".join(
            [
                command("key", "generate", "org"),
                command("push", str(adapter), "org/task@1.0.0", *registry),
                command("verify", "org/task", *registry),
            ]
        )
    )

    assert packages(loaded) & HEAVY == {"cryptography", "pluggy", "securesystemslib"}


def test_a_pinned_version_in_the_store_loads_no_client(hub, home, tmp_path):
    """What was pushed to the Hub and pulled once is there again without the client of the Hub."""
    from adapter_files import adapter_files

    import lora_hub

    lora_hub.push(adapter_files().write(tmp_path / "adapter"), "org/task@1.0.0")
    lora_hub.pull("org/task@1.0.0")
    loaded = modules_after(command("pull", "org/task@1.0.0"))

    assert packages(loaded) & HEAVY == set()


def test_an_unknown_name_is_an_attribute_error():
    """A name that is not there fails as in any module, and the names that are there are listed."""
    import lora_hub

    with pytest.raises(AttributeError, match="nonsense"):
        lora_hub.nonsense  # noqa: B018

    assert {"apply_adapter", "push", "pull", "use"} <= set(dir(lora_hub))


def test_a_missing_extra_is_named():
    """Without torch, a name that needs it says which extra to install, and is a usage error."""
    code = (
        "sys.modules['torch'] = None\n"
        "import lora_hub\n"
        "from lora_hub.errors import MissingExtraError\n"
        "for name in ('add_adapter', 'apply_adapter', 'use', 'save_adapter', 'adapters'):\n"
        "    try:\n"
        "        value = getattr(lora_hub, name)\n"
        "        assert name == 'apply_adapter', name\n"
        "        value(None, '.')\n"
        "    except MissingExtraError as error:\n"
        "        assert 'lora-hub[torch]' in error.hint and error.exit_code == 2, error\n"
        "    else:\n"
        "        raise AssertionError(name)\n"
    )

    assert "lora_hub.errors" in modules_after(code)


def test_adapters_do_not_load_the_compiler():
    """Attaching, running, training, routing and merging load neither torch's compiler nor transformers."""
    loaded = modules_after(
        "import tempfile, torch, lora_hub\n"
        "model, folder = torch.nn.Sequential(torch.nn.Linear(6, 6)), tempfile.mkdtemp()\n"
        "handle = lora_hub.add_adapter(model, 'task', targets=('0',))\n"
        "model(torch.randn(2, 3, 6)).sum().backward()\n"
        "lora_hub.save_adapter(handle, folder)\n"
        "lora_hub.apply_adapter(model, folder, name='style')\n"
        "with lora_hub.route(model, ['task', None]):\n"
        "    model(torch.randn(2, 3, 6))\n"
        "handle.merge(); handle.unmerge()\n"
    )

    assert {"lora_hub.patch.compiled", "torch"} <= loaded
    assert loaded & {"torch._dynamo", "torch._inductor", "transformers"} == set()
