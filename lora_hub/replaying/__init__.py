"""Golden outputs: recorded when an adapter is about to be published, replayed by whoever has torch and the base."""
