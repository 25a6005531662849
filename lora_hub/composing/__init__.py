"""Make one adapter out of several, and checkpoints out of adapters: exact arithmetic on deltas, no model in memory."""
