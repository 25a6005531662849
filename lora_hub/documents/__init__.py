"""What stands in the files of an adapter: parsed, checked and printed. No I/O, but for our own schemas."""
