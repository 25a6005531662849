"""A Hugging Face Hub on loopback, for tests: what the real client of models needs, and every way it can go wrong."""

from loopback_hub.faults import Fault
from loopback_hub.hub import LoopbackHub
from loopback_hub.log import Request
from loopback_hub.repositories import Commit, Repo

__all__ = ["Commit", "Fault", "LoopbackHub", "Repo", "Request"]
