"""Checkpoints of base models as files: read by their headers, merged into shard by shard, compared with a fine-tune."""
