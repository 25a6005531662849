"""The places of a JSON document: each key and item, by its path."""

import copy


def places(node, here=()):
    """Yield the path of every key and item under *node*."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from places(value, (*here, key))


def without(document, place):
    """Return a copy of *document* that lacks what is at *place*."""
    changed = copy.deepcopy(document)
    del _parent(changed, place)[place[-1]]
    return changed


def replaced(document, place, value):
    """Return a copy of *document* that has *value* at *place*."""
    changed = copy.deepcopy(document)
    _parent(changed, place)[place[-1]] = value
    return changed


def _parent(node, place):
    for key in place[:-1]:
        node = node[key]
    return node
