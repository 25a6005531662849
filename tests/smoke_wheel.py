"""What must work where only the wheel and its core dependencies are installed: no pytest, no torch, no checkout.

    python tests/smoke_wheel.py

Exits with 0 if everything does; otherwise with a traceback that names the first thing that does not.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from adapter_files import adapter_files  # beside this script


def lora_hub(*words: object) -> str:
    """Run the installed command and return what it printed to stdout."""
    script = Path(sys.executable).with_name("lora-hub")
    done = subprocess.run([script, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`lora-hub {' '.join(map(str, words))}` ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def check_that_this_is_the_wheel() -> None:
    """The package under test must be the installed one, and nothing beyond its core dependencies may be there."""
    import lora_hub

    checkout = Path(__file__).resolve().parents[1]
    assert checkout not in Path(lora_hub.__file__).resolve().parents, f"{lora_hub.__file__} is the checkout"
    extra = [name for name in ("torch", "transformers", "safetensors", "numpy") if importlib.util.find_spec(name)]
    assert not extra, f"the environment has {extra}, so it proves nothing about the core"


def check_schema() -> None:
    """The schemas are in the wheel."""
    for name in ("manifest", "lock"):
        schema = json.loads(lora_hub("schema", name))
        assert schema["$id"] == f"urn:lora-hub:schema:{name}:v1", schema["$id"]


def check_plugins() -> None:
    """The built-in families are in the wheel, and none is broken."""
    found = {plugin["name"]: plugin for plugin in json.loads(lora_hub("plugins", "--json"))}
    assert {"bert", "gpt2", "llama"} <= found.keys(), found
    assert not any(plugin["error"] for plugin in found.values()), found


def check_push_and_pull(directory: Path) -> None:
    """An adapter is signed, published, pulled, described and verified without torch."""
    adapter = adapter_files().write(directory / "adapter")
    key = json.loads(lora_hub("key", "generate", "org", "--json"))
    pushed = json.loads(lora_hub("push", adapter, "org/task@1.0.0", "--json"))
    (pulled,) = json.loads(lora_hub("pull", "org/task", "--json"))
    info = json.loads(lora_hub("info", "org/task@1.0.0", "--json"))
    verified = json.loads(lora_hub("cache", "verify", "--json"))

    assert pushed["digest"] == pulled["digest"] == info["digest"], (pushed, pulled, info)
    assert (Path(pulled["path"]) / "adapter_config.json").is_file(), pulled
    assert (info["r"], info["targets"]) == (2, ["q_proj", "v_proj"]), info
    assert verified == {"checked": 1, "broken": []}, verified
    assert pulled["signers"] == [f"key {key['org']}"], pulled
    assert lora_hub("verify", "org/task").startswith("org/task@1.0.0  "), "`verify` does not say what it verified"


def check_the_check(directory: Path) -> None:
    """An adapter is checked, alone and against the headers of a base, without torch."""
    from checking.base_models import llama

    adapter, base = adapter_files(seed=1).write(directory / "checked"), llama().write(directory / "base")
    text = lora_hub("check", adapter, "--base", base)
    assert "q on 2/2 layers" in text, text
    assert lora_hub("check", "--explain", "LH101").startswith("# LH101"), "`--explain` has no page"


def check_that_the_hub_is_known() -> None:
    """The registry on the Hub is there with its client; it opens no socket where none may be opened."""
    import lora_hub
    from lora_hub.errors import RegistryError
    from lora_hub.registry.hub_client import HubClient

    message = ""
    try:
        lora_hub.pull("org/task@1.0.0", registry="hf://", offline=True)
    except RegistryError as error:
        message = error.message
    assert HubClient().host, "the client names no host"
    assert "network" in message, "`pull` with `offline=True` did not refuse to use the network"


def check_missing_extra() -> None:
    """What needs torch says which extra to install."""
    import lora_hub
    from lora_hub.errors import MissingExtraError

    hint = None
    try:
        lora_hub.add_adapter  # noqa: B018 - the name is resolved here
    except MissingExtraError as error:
        hint = error.hint
    assert "lora-hub[torch]" in str(hint), "`lora_hub.add_adapter` did not raise `MissingExtraError` with the extra"


def main() -> None:
    """Run all checks in a directory and a home that nobody else has."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["LORA_HUB_HOME"] = str(Path(directory) / "home")
        os.environ["LORA_HUB_REGISTRY"] = str(Path(directory) / "registry")
        check_that_this_is_the_wheel()
        check_schema()
        check_plugins()
        check_push_and_pull(Path(directory))
        check_the_check(Path(directory))
        check_that_the_hub_is_known()
        check_missing_extra()
    sys.stdout.write("the wheel works\n")


if __name__ == "__main__":
    main()
