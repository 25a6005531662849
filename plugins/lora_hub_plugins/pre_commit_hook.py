"""pre-commit: check the adapters whose files are about to be committed, each of them once.

    python -m lora_hub_plugins.pre_commit_hook [options of `lora-hub check`] FILE...

pre-commit passes the options of ``args:`` first, then the files. https://pre-commit.com/#creating-new-hooks
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence

FILES = {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "lora-hub.json"}
_MANIFEST = "lora-hub.json"


def main(words: Sequence[str]) -> None:
    """Become ``lora-hub check`` on the directories of the files that end *words*; without one, end well."""
    options, directories = split(words)
    if directories:
        command = [sys.executable, "-m", "lora_hub", "check", *options, "--", *directories]
        os.execv(sys.executable, command)  # noqa: S606 - there is no shell in between


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options that begin *words*, and the directories of the files that end them, in order and once each.

    A directory begins with ``./``, so that it is not taken for a reference. One that holds no adapter (any more), but a
    manifest of something else, is left out.
    """
    files = list(itertools.takewhile(_is_file_of_an_adapter, reversed(words)))
    options = list(words[: len(words) - len(files)])
    directories = sorted({_directory(file) for file in files})
    return options, [directory for directory in directories if _holds_an_adapter(directory)]


def _is_file_of_an_adapter(word: str) -> bool:
    return os.path.basename(word) in FILES  # noqa: PTH119 - bytes that are no UTF-8 stay as they are


def _directory(file: str) -> str:
    directory = os.path.dirname(file) or "."  # noqa: PTH120
    return directory if directory.startswith(("/", "./", "../")) or directory == "." else f"./{directory}"


def _holds_an_adapter(directory: str) -> bool:
    return any(os.path.exists(os.path.join(directory, name)) for name in FILES - {_MANIFEST})  # noqa: PTH110, PTH118


if __name__ == "__main__":
    main(sys.argv[1:])
