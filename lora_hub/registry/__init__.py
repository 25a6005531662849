"""Moves and proves the bytes of adapters. Knows nothing of torch."""
