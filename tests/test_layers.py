"""Who may import whom: read from the sources, also inside functions. Only imports under TYPE_CHECKING do not count."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"lora_hub": ROOT / "lora_hub", "lora_hub_plugins": ROOT / "plugins" / "lora_hub_plugins"}

# The lowest first; a module may import from its own layer and from those below. The longest matching prefix counts.
LAYERS = [
    ["lora_hub.errors"],
    ["lora_hub.version", "lora_hub.reference", "lora_hub.architecture", "lora_hub.extras", "lora_hub.rule"],
    ["lora_hub.checking.check", "lora_hub.checking.finding"],
    ["lora_hub.documents", "lora_hub.hookspecs"],
    ["lora_hub.buffers", "lora_hub.places", "lora_hub.plugin_manager"],
    ["lora_hub.files"],
    [
        "lora_hub.locked",
        "lora_hub.adapter_directory",
        "lora_hub.adapter_files",
        "lora_hub.tensors",
        "lora_hub.rounding",
        "lora_hub.sampling",
    ],
    ["lora_hub.signing"],
    ["lora_hub.registry", "lora_hub.patch", "lora_hub.composing", "lora_hub.checkpoint", "lora_hub.inspecting"],
    ["lora_hub.checking"],
    ["lora_hub.searching", "lora_hub.ancestry", "lora_hub.base_model"],
    ["lora_hub.replaying"],
    ["lora_hub.api", "lora_hub.look", "lora_hub.trust", "lora_hub.vouch", "lora_hub.trainer", "lora_hub.composition"],
    [
        "lora_hub.merging",
        "lora_hub.weight_search",
        "lora_hub.extraction",
        "lora_hub.inspection",
        "lora_hub.recompute",
        "lora_hub.checked_sources",
        "lora_hub.checkup",
    ],
    ["lora_hub.golden"],
    ["lora_hub.replays"],
    ["lora_hub"],  # the public names
    ["lora_hub.demo", "lora_hub_plugins"],
    ["lora_hub.cli"],
    ["lora_hub.__main__"],
]

NETWORK = {
    "socket",
    "ssl",
    "http",
    "urllib",
    "urllib3",
    "requests",
    "httpx",
    "aiohttp",
    "huggingface_hub",
    "httpx2",
    "hf_xet",
    "fsspec",
    "boto3",
    "botocore",
}
CRYPTOGRAPHY = {"cryptography", "securesystemslib", "sigstore", "bcrypt"}  # `signing` alone knows them
TORCH = {"torch", "transformers", "peft", "accelerate", "safetensors", "numpy"}

# Each is known to one module alone.
ALONE = {
    "huggingface_hub": "lora_hub.registry.hub_client",
    "hf_xet": "lora_hub.registry.xet",
    "aiohttp": "lora_hub.registry.object_store",
    "fsspec": "lora_hub.registry.object_store",
    "yaml": "lora_hub.documents.model_card",
    "filelock": "lora_hub.locked",
    "sigstore": "lora_hub.signing.keyless",
    "nevergrad": "lora_hub.searching.optimiser",
}

# What a part of the house never imports, at any depth of its functions.
FORBIDDEN = {
    "lora_hub.documents": TORCH | NETWORK | CRYPTOGRAPHY | {"pluggy", "platformdirs", "click", "pickle"},
    "lora_hub.registry": (TORCH | NETWORK | CRYPTOGRAPHY | {"pluggy", "click", "pickle"})
    - set(ALONE)
    - {"urllib", "httpx2"},  # see below
    "lora_hub.cli": TORCH | NETWORK | {"pickle"},
    "lora_hub.patch": NETWORK | {"transformers", "peft", "accelerate", "click", "platformdirs", "pickle"},
    "lora_hub.composing": NETWORK | {"transformers", "peft", "accelerate", "click", "platformdirs", "pickle"},
    "lora_hub.inspecting": NETWORK | {"transformers", "peft", "accelerate", "click", "platformdirs", "pickle"},
    "lora_hub.inspection": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.checking": TORCH | NETWORK | {"click", "platformdirs", "pickle"},
    "lora_hub.base_model": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.checked_sources": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.checkup": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.checkpoint": NETWORK | {"peft", "accelerate", "click", "platformdirs", "pickle"},
    "lora_hub.searching": NETWORK | {"peft", "accelerate", "click", "platformdirs", "pickle"},
    "lora_hub.replaying": NETWORK | {"transformers", "peft", "accelerate", "click", "platformdirs", "pickle"},
    "lora_hub.replays": NETWORK | {"transformers", "peft", "click", "pickle"},
    "lora_hub.golden": NETWORK | {"transformers", "peft", "click", "pickle"},
    "lora_hub.weight_search": NETWORK | {"transformers", "peft", "click", "pickle"},
    "lora_hub.extraction": NETWORK | {"transformers", "peft", "click", "pickle"},
    "lora_hub.trainer": NETWORK | {"transformers", "peft", "accelerate"},
    "lora_hub.composition": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.ancestry": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.look": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.merging": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.trust": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.recompute": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.vouch": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.signing": TORCH | NETWORK | {"click", "pickle"},
    "lora_hub.api": NETWORK | {"transformers", "peft", "click", "pickle"},
    "lora_hub.demo": NETWORK | {"peft", "pickle"},
    "lora_hub.files": TORCH | NETWORK | {"pickle"},
    "lora_hub.adapter_directory": TORCH | NETWORK | {"pickle"},
    "lora_hub.sampling": NETWORK | {"transformers", "peft", "pickle"},
    "lora_hub.plugin_manager": TORCH | NETWORK,
    "lora_hub_plugins": TORCH | NETWORK,
}

# Of two folders on one floor, neither knows the other; `api` alone knows both.
STRANGERS = [
    ("lora_hub.registry", "lora_hub.patch"),
    ("lora_hub.patch", "lora_hub.registry"),
    ("lora_hub.composing", "lora_hub.registry"),
    ("lora_hub.composing", "lora_hub.patch"),
    ("lora_hub.patch", "lora_hub.composing"),
    ("lora_hub.registry", "lora_hub.composing"),
    ("lora_hub.checkpoint", "lora_hub.registry"),
    ("lora_hub.checkpoint", "lora_hub.patch"),
    ("lora_hub.registry", "lora_hub.checkpoint"),
    ("lora_hub.patch", "lora_hub.checkpoint"),
    ("lora_hub.composing", "lora_hub.checkpoint"),
    ("lora_hub.composing", "lora_hub.inspecting"),
    ("lora_hub.inspecting", "lora_hub.registry"),
    ("lora_hub.inspecting", "lora_hub.patch"),
    ("lora_hub.inspecting", "lora_hub.checkpoint"),
    ("lora_hub.checking", "lora_hub.registry"),
    ("lora_hub.checking", "lora_hub.patch"),
    ("lora_hub.checking", "lora_hub.composing"),
    ("lora_hub.searching", "lora_hub.registry"),
    ("lora_hub.searching", "lora_hub.checkpoint"),
    ("lora_hub.replaying", "lora_hub.registry"),
    ("lora_hub.replaying", "lora_hub.checkpoint"),
]


def modules() -> dict[str, Path]:
    """Return every module of the package and of the built-in plugins, by its name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(name: str, *, lazy: bool) -> Iterator[str]:
    """Yield what the module *name* imports when it is loaded; with *lazy*, also what its functions import."""
    pending: list[ast.AST] = [ast.parse(MODULES[name].read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if is_type_checking(node) or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy):
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            yield from _imported_from(node)


def _imported_from(node: ast.ImportFrom) -> Iterator[str]:
    """Yield the modules that ``from package import name`` loads: each name that is a module, else the package."""
    for alias in node.names:
        full = f"{node.module}.{alias.name}"
        yield full if full in MODULES else str(node.module)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int:
    """Return the layer of the module *name*."""
    homes = [
        (len(prefix), floor) for floor, prefixes in enumerate(LAYERS) for prefix in prefixes if is_in(name, prefix)
    ]
    return max(homes)[1]


def test_every_module_has_a_layer():
    """A new part of the house is given its place in `LAYERS`."""
    homeless = {name for name in MODULES if layer(name) == layer("lora_hub")}

    assert homeless == {"lora_hub"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name):
    """A module imports from its own layer and from the layers below, never from above."""
    ours = [imported for imported in imports(name, lazy=True) if is_in(imported, "lora_hub")]

    assert [imported for imported in ours if layer(imported) > layer(name)] == []


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_a_part_never_imports_what_it_must_not_know(part):
    """A part of the house keeps out of what it must not know, inside functions as well."""
    forbidden = FORBIDDEN[part]
    guilty = {
        (name, imported)
        for name in MODULES
        if is_in(name, part)
        for imported in imports(name, lazy=True)
        if imported.partition(".")[0] in forbidden
    }

    assert guilty == set()


def test_comparing_files_with_a_fingerprint_needs_no_torch():
    """A check runs where there is none: nothing that the comparison loads, directly or not, loads torch."""
    waiting, seen = ["lora_hub.checkpoint.fingerprint"], set()
    while waiting:
        name = waiting.pop()
        found = set(imports(name, lazy=False)) - seen
        seen |= found
        waiting += sorted(found & MODULES.keys())

    assert "lora_hub.documents.fingerprint" in seen
    assert {name.partition(".")[0] for name in seen}.isdisjoint(TORCH)


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_strangers_do_not_know_each_other(one, other):
    """Registry and patcher do not know each other; they meet in `api`."""
    guilty = {
        (name, imported)
        for name in MODULES
        if is_in(name, one)
        for imported in imports(name, lazy=True)
        if is_in(imported, other)
    }

    assert guilty == set()


def test_who_names_models_knows_transformers():
    """Models are recognised by what they are: only what reads one from disk asks what transformers calls it."""
    guilty = {name for name in MODULES for imported in imports(name, lazy=True) if is_in(imported, "transformers")}
    at_once = {name for name in guilty if any(is_in(i, "transformers") for i in imports(name, lazy=False))}
    known = {"lora_hub.checkpoint.known_model", "lora_hub.searching.base"}

    assert {name for name in guilty if not is_in(name, "lora_hub.demo")} == known
    assert known.isdisjoint(at_once)


@pytest.mark.parametrize("package", sorted(ALONE))
def test_one_module_alone_knows(package):
    """What speaks to the outside has one place in the house."""
    guilty = {name for name in MODULES for imported in imports(name, lazy=True) if is_in(imported, package)}

    assert guilty == {ALONE[package]}


def test_the_registry_parses_urls_and_opens_none():
    """Of urllib, only the parser of URLs is used anywhere."""
    used = {imported for name in MODULES for imported in imports(name, lazy=True) if is_in(imported, "urllib")}

    assert used <= {"urllib.parse"}


def test_built_in_plugins_use_public_names_only():
    """A built-in family has no privilege: it imports `lora_hub`, nothing inside it."""
    used = {
        imported
        for name in MODULES
        if is_in(name, "lora_hub_plugins")
        for imported in imports(name, lazy=True)
        if is_in(imported, "lora_hub")
    }

    assert used <= {"lora_hub", "lora_hub.errors"}


def test_there_is_no_import_cycle():
    """No module loads itself by way of others; imports inside functions do not count, nor does what only types need."""
    graph = {
        name: {imported for imported in imports(name, lazy=False) if imported in MODULES} - {name} for name in MODULES
    }

    graphlib.TopologicalSorter(graph).prepare()


def test_the_names_that_are_exported_exist():
    """What `import lora_hub` promises lazily is what its types say: each public name has one home, which defines it."""
    tree = ast.parse(MODULES["lora_hub"].read_text(encoding="utf-8"))
    (block,) = (node for node in ast.walk(tree) if is_type_checking(node))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    import lora_hub

    assert typed == {"errors": "lora_hub", **lora_hub._HOMES}
    assert set(lora_hub.__all__) == {"__version__", *typed}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a"}),
        ("def f():\n    import a", {"a"}),
        ("if TYPE_CHECKING:\n    import a", set()),
        ("try:\n    import a\nexcept ImportError:\n    import b", {"a", "b"}),
        ("class C:\n    def f(self):\n        def g():\n            from lora_hub import errors", {"lora_hub.errors"}),
    ],
)
def test_this_reader_finds_imports(tmp_path, monkeypatch, source, expected):
    """The reader of imports itself: it sees nested ones, and skips what only types need."""
    (tmp_path / "module.py").write_text(source)
    monkeypatch.setitem(MODULES, "module", tmp_path / "module.py")

    assert set(imports("module", lazy=True)) == expected
