"""Changed documents of every format, and what must hold of each; `python -m fuzz` goes on for ever."""
