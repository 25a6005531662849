"""Where the files are that other tools read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
