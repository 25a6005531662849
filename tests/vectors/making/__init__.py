"""What the vectors are made of: versions of a tiny adapter, and everything that can be wrong with one."""
