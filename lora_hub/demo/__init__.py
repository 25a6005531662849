"""The whole life of an adapter on one machine, on real weights and real text: what `lora-hub demo` runs."""
