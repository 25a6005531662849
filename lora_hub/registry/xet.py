"""Xet, the Hub's storage for large files: a stream of bytes that begins anywhere and never waits for ever.

The only module that knows hf_xet. Whatever goes wrong here, plain HTTP has the same bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from lora_hub.registry.network import StalledError, timeout, watched


class XetFailedError(Exception):
    """Xet gave up."""


def limit() -> None:
    """Have hf-xet give up in time, unless the user said when; it reads this once in each process."""
    limits = {"RETRY_MAX_ATTEMPTS": "3", "RETRY_BASE_DELAY": "500ms", "READ_TIMEOUT": f"{math.ceil(timeout())}s"}
    for name, value in limits.items():
        os.environ.setdefault(f"HF_XET_CLIENT_{name}", value)


def chunks(session: Any, group: Mapping[str, object], file: str, size: int, start: int) -> Iterator[bytes]:  # noqa: ANN401 - hf-xet has no types
    """Yield the bytes of a file from *start* on.

    Args:
        session: The client's session with hf-xet.
        group: Where its content lies, and the token for it: arguments of ``new_download_stream_group``.
        file: Its Xet hash.
        size: Bytes of all of it.
        start: Where to begin.

    Raises:
        XetFailedError: It ended early, or came to a halt.
    """
    from hf_xet import XetFileInfo

    try:
        stream = session.new_download_stream_group(**group).download_stream(XetFileInfo(file, size), start=start)
        yield from watched(stream, stream.cancel)
    except (OSError, RuntimeError, ValueError, StalledError) as error:
        raise XetFailedError from error
