"""Which base model a word means: a directory on this machine, or a repository on the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hub.documents.fields import printable
from lora_hub.errors import LoraHubError, UsageError
from lora_hub.reference import PathLike

if TYPE_CHECKING:
    from lora_hub.checkpoint.base_files import BaseFiles

_HUB_BASE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


def base_files(base: PathLike) -> BaseFiles:
    """Return the files of *base*: a directory, or a repository on the Hub, ``org/model[@revision]``.

    A directory is a path, or a string that starts with ``.`` or ``/``.

    Raises:
        UsageError: It is neither.
        NotFoundError: There is no such directory, repository or revision.
    """
    from lora_hub.checkpoint.base_files import LocalBase

    if not isinstance(base, str) or base.startswith((".", "/")):
        return LocalBase(Path(base))
    match = _HUB_BASE.fullmatch(base)
    if match is None:
        raise UsageError(
            f"{printable(base)} is no base model",
            hint=f"write `org/model[@revision]`, or a directory that begins with `.` or `/`, as in `./{base}`",
        )
    from lora_hub.registry.base_files import HubBase

    try:
        return HubBase(match["repo"], match["revision"])
    except LoraHubError as error:
        if Path(base).is_dir():
            error.hint = f"write `./{base}`, if the directory is meant"
        raise
