"""What a user has at home: trust policies, as TOML; the memory of what was seen; and what yanks a version."""

from __future__ import annotations

import json
from typing import Any

from vectors.making.published import (
    KEY,
    MANIFEST_NAME,
    SECOND,
    STATEMENT_TYPE,
    Files,
    PrivateKey,
    bundle_of,
    dump,
    fingerprint,
    public_pem,
    sha256,
)


def digest(files: Files) -> str:
    """Return the identity of a version."""
    return f"sha256:{sha256(files[MANIFEST_NAME])}"


ANOTHER = f"sha256:{'0' * 64}"
LONG_AGO, LAST_YEAR, FAR_AWAY = "2001-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


def lines(values: dict[str, Any]) -> str:
    """Return *values* as lines of TOML."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def key(name: str, private: PrivateKey, *, not_before: str = "", not_after: str = "") -> str:
    """Return the table of a key."""
    times = {"not_before": not_before, "not_after": not_after}
    window = "".join(f"{name} = {time}\n" for name, time in times.items() if time)
    return f'[[key]]\nname = "{name}"\n{window}pem = """\n{public_pem(private).decode()}"""\n'


def rule(scope: str, *keys: str, **more: Any) -> str:
    """Return the table of a rule."""
    return f"[[rule]]\n{lines({'scope': scope, 'keys': list(keys), **more})}"


def revoked(**values: str) -> str:
    """Return the table of a revocation."""
    return f"[[revoked]]\n{lines(values)}"


def pin(digest: str, **more: Any) -> str:
    """Return the table of a pin."""
    values = {"registry": "{registry}", "name": "org/task", "version": "1.0.0", "digest": digest, **more}
    return f"[[pin]]\n{lines(values)}"


def policy(*tables: str) -> bytes:
    """Return a policy of these tables."""
    return "\n".join(("version = 1\n", *tables)).encode()


def home(*tables: str) -> Files:
    """Return a home with a policy of these tables."""
    return {"trust.toml": policy(*tables)}


TEST_KEY, TEST_RULE = key("test", KEY), rule("org/*", "test")
USUAL = policy(TEST_KEY, TEST_RULE)
TWO = (key("one", KEY), key("two", SECOND))


def seen(at: str, digest: str) -> Files:
    """Return a home with the usual policy, where a version was accepted before."""
    sight = {"registry": "{registry}", "name": "org/task", "at": at, "digest": digest, "yanked": False}
    return {"seen.json": dump({"schema": "lora-hub/seen/v1", "seen": [sight]})}


def yank(private: PrivateKey, digest: str) -> Files:
    """Return the file, beside the versions, in which *private* yanks the version that has *digest*."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "org/task@1.0.0", "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": "urn:lora-hub:yank:v1",
        "predicate": {"created": "2026-01-31T12:00:00Z", "reason": "it forgets \x1b[2J\u202e"},
    }
    return {f"yanked/1.0.0.{fingerprint(private)[:8]}.sig": dump(bundle_of(dump(statement), private))}
