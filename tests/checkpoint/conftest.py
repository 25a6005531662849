"""What the tests of merging share: a base, an adapter, and the merge of both."""

from pathlib import Path

import pytest
from adapter_files import adapter_files
from bases import base_files

import lora_hub


@pytest.fixture
def base(tmp_path) -> Path:
    """The directory of a base in three shards, float32."""
    return base_files().write(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path) -> Path:
    """The directory of an adapter that fits it."""
    return adapter_files().write(tmp_path / "adapter")


@pytest.fixture
def merge(tmp_path):
    """Merge adapters, each with weight 1, into a base, and return the output."""

    def merge(base: Path, *adapters: Path, output: str = "merged", **how) -> Path:
        lora_hub.merge_checkpoint(base, dict.fromkeys(adapters, 1.0), tmp_path / output, **how)
        return tmp_path / output

    return merge
