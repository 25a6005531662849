"""A vector laid out on disk: the registry that it lies in, the user's home, the project in which it is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vectors.make_hostile import POLICY_NAME, ROOT

_OURS = {"expected.json", "special.json", "reference.txt", "home", "beside", "project"}
# What a command may write, besides the store: the memory, and the locks of both files of the home.
_MAY_BE_WRITTEN = {"home/seen.json", "home/.seen.json.lock", "home/.trust.toml.lock"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where everything is, what is asked for, and what must come of it: exit code, error, a part of the message."""

    registry: Path
    home: Path
    project: Path
    reference: str
    expected: dict[str, Any]


def lay_out(folder: Path, root: Path) -> Scene:
    """Put the vector of *folder* under *root*, whatever the umask is."""
    special = json.loads(_text(folder / "special.json", "{}"))
    scene = Scene(
        registry=root / "registry",
        home=root / "home",
        project=root / "project",
        reference=_text(folder / "reference.txt", "org/task@1.0.0").strip(),
        expected=json.loads(_text(folder / "expected.json", "{}")),
    )
    adapter = scene.registry / "org" / "task"
    version = adapter / special.get("version", "1.0.0")
    files = {version / path.name: path.read_bytes() for path in folder.iterdir() if path.name not in _OURS}
    files[scene.home / "trust.toml"] = (ROOT / POLICY_NAME).read_bytes()
    for place, target in (("beside", adapter), ("home", scene.home), ("project", scene.project)):
        files |= _below(folder / place, target)
    for path, content in files.items():
        _make_directory(path.parent)
        is_users = scene.home in path.parents or scene.project in path.parents
        path.write_bytes(content.replace(b"{registry}", scene.registry.as_uri().encode()) if is_users else content)
        path.chmod(0o600)
    _make_directory(scene.project)
    _make_special(special, version, scene.home)
    return scene


def inventory(root: Path) -> dict[str, object]:
    """Return what lies under *root*, but for the store and what else a command may write."""
    paths = {str(path.relative_to(root)): path for path in root.rglob("*")}
    return {n: _state(p) for n, p in paths.items() if not n.startswith("home/store") and n not in _MAY_BE_WRITTEN}


def _state(path: Path) -> object:
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return status.st_mode
    is_small = stat.S_ISREG(status.st_mode) and status.st_size < 2**24
    content = hashlib.sha256(path.read_bytes()).hexdigest() if is_small else None
    return status.st_mode, status.st_size, status.st_mtime_ns, content


def _text(path: Path, default: str) -> str:
    return path.read_text() if path.exists() else default


def _below(folder: Path, target: Path) -> dict[Path, bytes]:
    paths = folder.rglob("*") if folder.is_dir() else ()
    return {target / path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}


def _make_directory(path: Path) -> None:
    if not path.exists():
        _make_directory(path.parent)
        path.mkdir()
        path.chmod(0o700)


def _make_special(special: dict[str, Any], version: Path, home: Path) -> None:
    make: dict[str, Callable[[Path, Any], object]] = {
        "pad": _pad,
        "sparse": _make_sparse,
        "fifo": lambda path, _: _anew(path, lambda: os.mkfifo(path, 0o600)),
        "directory": lambda path, _: _anew(path, lambda: path.mkdir(mode=0o700)),
        "links": lambda path, target: _anew(path, lambda: path.symlink_to(target)),
        "modes": lambda path, mode: path.chmod(int(mode, 8)),
    }
    for kind in make.keys() & special.keys():
        named = special[kind]
        for name in named:
            path = home / name.removeprefix("home/") if name.startswith("home/") else version / name
            make[kind](path, named[name] if isinstance(named, dict) else None)


def _pad(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes().ljust(size, b" "))


def _make_sparse(path: Path, size: int) -> None:
    path.touch(0o600)
    os.truncate(path, size)


def _anew(path: Path, make: Callable[[], object]) -> None:
    path.unlink(missing_ok=True)
    make()
