"""One vector: a version as it lies in a registry, what the user has at home, and what must come of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vectors.making.published import Document, Files, dump

ERRORS = {
    3: "NotFoundError",
    5: "UntrustedError",
    6: "IntegrityError",
    7: "PolicyError",
    8: "DocumentError",
}
REFERENCE = "org/task@1.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A vector.

    Attributes:
        files: Of the version.
        expected: The exit code, the class of the error and a part of its message; None if it must be accepted.
        home: What the user has: ``trust.toml`` in place of the usual policy, ``seen.json``. In all of it ``{registry}``
            stands for the URL of the registry.
        beside: What lies beside the version in the registry.
        project: What lies in the working directory.
        reference: What is asked for.
        special: What is made before the run, since a folder cannot hold it well:

            - ``version``: what the folder of the version is called in the registry, if not ``1.0.0``;
            - ``pad``: spaces are appended to a file until it has so many bytes;
            - ``sparse``: an empty file of so many bytes;
            - ``fifo``, ``directory``: names of such;
            - ``links``: symbolic links, and where they lead;
            - ``modes``: permissions.
    """

    files: Files
    expected: Document | None = None
    home: Files = field(default_factory=dict)
    beside: Files = field(default_factory=dict)
    project: Files = field(default_factory=dict)
    reference: str = REFERENCE
    special: Mapping[str, Any] = field(default_factory=dict)

    def tree(self) -> Files:
        """Return the files of the vector's folder, by path."""
        tree = dict(self.files)
        for place, files in (("home", self.home), ("beside", self.beside), ("project", self.project)):
            tree |= {f"{place}/{name}": content for name, content in files.items()}
        if self.expected is not None:
            tree["expected.json"] = dump(self.expected)
        if self.reference != REFERENCE:
            tree["reference.txt"] = f"{self.reference}\n".encode()
        if self.special:
            tree["special.json"] = json.dumps(self.special, indent=2).encode() + b"\n"
        return tree


def refused(exit_code: int, contains: str, files: Files, *, error: str | None = None, **more: Any) -> Case:
    """Return a vector that must be refused."""
    expected = {"exit_code": exit_code, "error": error or ERRORS[exit_code], "contains": contains}
    return Case(files=files, expected=expected, **more)


def malformed(contains: str, files: Files, **more: Any) -> Case:
    """Return a vector that must be refused as no adapter, although each of its documents is one by itself."""
    return refused(8, contains, files, error="MalformedError", **more)


def accepted(files: Files, **more: Any) -> Case:
    """Return a vector that must be accepted."""
    return Case(files=files, **more)
