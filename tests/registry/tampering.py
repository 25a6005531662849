"""What an attacker does who may write into a registry: change, hide, copy and rename what lies there."""

from __future__ import annotations

from collections.abc import Mapping

from lora_hub.documents.bundle import is_signature_name
from lora_hub.documents.manifest import VERSION_FILES
from lora_hub.documents.statement import YANKED
from lora_hub.reference import AdapterRef
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.object_store import ObjectStoreRegistry
from lora_hub.registry.registry import Registry


class Place:
    """What lies in a registry, for somebody who may do there what they like; *hub* is the Hub behind it, if one is."""

    def __init__(self, registry: Registry, hub=None) -> None:
        self._registry, self._hub = registry, hub

    def files(self, reference: str) -> dict[str, bytes]:
        """Return the files of a version that belong to it, its signatures included."""
        exact = AdapterRef.parse(reference)
        snapshot = self._registry.snapshot(exact, self._registry.listing(exact).versions[exact.version])
        names = [name for name in snapshot.files if name in VERSION_FILES or is_signature_name(name)]
        return {name: b"".join(snapshot.read(name, 0, None)) for name in names}

    def signatures(self, reference: str) -> dict[str, bytes]:
        """Return its signatures alone."""
        return {name: content for name, content in self.files(reference).items() if is_signature_name(name)}

    def change(self, reference: str, files: Mapping[str, bytes | None]) -> None:
        """Write *files* of a version, which need not exist yet; None removes one."""
        exact = AdapterRef.parse(reference)
        if self._hub is not None:
            self._commit(exact, files)
            return
        for name, content in files.items():
            self._put(f"{exact.name}/{exact.version}/{name}", content)

    def hide(self, reference: str) -> None:
        """Take a version away."""
        exact = AdapterRef.parse(reference)
        if self._hub is not None:
            self._hub.repo(exact.name).delete_tag(f"v{exact.version}")
        else:
            self.change(reference, dict.fromkeys(self.files(reference)))

    def copy(self, old: str, new: str) -> None:
        """Let the files of one version lie under another name or version as well."""
        self.change(new, self.files(old))

    def put_yank(self, name: str, file: str, content: bytes | None) -> None:
        """Put something among the statements that yank versions of `org/task`, or take it away."""
        if self._hub is not None:
            self._hub.repo(name).commit({f"{YANKED}/{file}": content})
        else:
            self._put(f"{name}/{YANKED}/{file}", content)

    def _put(self, path: str, content: bytes | None) -> None:
        if isinstance(self._registry, ObjectStoreRegistry):
            if content is None:
                self._registry._fs.rm_file(path)
            else:
                self._registry._fs.pipe_file(path, content)
            return
        file = self._registry._root / path
        if content is None:
            file.unlink()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def _commit(self, exact: AdapterRef, files: Mapping[str, bytes | None]) -> None:
        if exact.name not in self._hub.repos:
            self._hub.create(exact.name)
        repo, tag = self._hub.repo(exact.name), f"v{exact.version}"
        branch = f"scratch-{len(repo.commits)}"
        repo.branch(branch, repo.tags.get(tag) or repo.commits[0].id)
        commit = repo.commit(files, branch).id
        if tag in repo.tags:
            repo.move_tag(tag, commit)
        else:
            repo.tag(tag, commit)


def place_of(registry: Registry, request) -> Place:
    """Return what lies in *registry*."""
    is_hub = not isinstance(registry, DirectoryRegistry | ObjectStoreRegistry)
    return Place(registry, request.getfixturevalue("hub") if is_hub else None)
