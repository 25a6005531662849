"""A private Sigstore on loopback, for tests of keyless signing: what its real client needs, and how it can lie."""

from loopback_sigstore.authority import said_of
from loopback_sigstore.sigstore import LoopbackSigstore

__all__ = ["LoopbackSigstore", "said_of"]
