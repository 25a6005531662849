"""Make the vectors of hostile and of sound versions: ``python tests/vectors/make_hostile.py``.

One folder each under ``v1/hostile/<group>/`` and ``v1/accepted/``; `vectors.making.case.Case` says what lies in it. The
same bytes every time, and without lora-hub: so they say what its formats are, not what it does.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent / "v1"
HOSTILE, ACCEPTED = "hostile", "accepted"
KEY_NAME, POLICY_NAME = "test_key.pem", "test_trust.toml"


def vectors() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the folder of each vector under ``v1``, and its files by path."""
    from vectors.making import (
        bundles,
        configs,
        file_sets,
        manifests,
        policies,
        sound_adapters,
        sound_signatures,
        statements,
        weights,
    )

    groups = {
        f"{HOSTILE}/adapter_config": [configs],
        f"{HOSTILE}/bundle": [bundles, statements],
        f"{HOSTILE}/file_set": [file_sets],
        f"{HOSTILE}/manifest": [manifests],
        f"{HOSTILE}/policy": [policies],
        f"{HOSTILE}/safetensors": [weights],
        ACCEPTED: [sound_adapters, sound_signatures],
    }
    for group, modules in groups.items():
        for module in modules:
            for name, case in module.cases():
                yield f"{group}/{name}", case.tree()


def tree() -> dict[str, bytes]:
    """Return everything that is made, by path under ``v1``."""
    from vectors.making.published import KEY, private_pem
    from vectors.making.trust import USUAL

    made = {KEY_NAME: private_pem(KEY), POLICY_NAME: USUAL}
    folders = set()
    for folder, files in vectors():
        assert folder not in folders, f"two vectors are called {folder}"
        folders.add(folder)
        made |= {f"{folder}/{name}": content for name, content in files.items()}
    return made


def main() -> None:
    """Write everything anew."""
    made = tree()
    for name in (HOSTILE, ACCEPTED):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for name, content in made.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
