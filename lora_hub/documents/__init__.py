"""What stands in the files of an adapter: parsed, checked and printed, without any I/O."""
