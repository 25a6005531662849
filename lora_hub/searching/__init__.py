"""Search the weights of a mixture of adapters on a few examples, without gradients (LoraHub, arXiv 2307.13269)."""
