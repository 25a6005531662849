"""The built-in rules, by group: what each one means stands in the docstring of the function that checks it."""
