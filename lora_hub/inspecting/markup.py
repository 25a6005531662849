"""Elements of HTML and SVG as a tree, so that whatever comes from outside is escaped by being serialised."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from xml.etree.ElementTree import Element

Child = Element | str | None

_VOID = frozenset({"meta"})  # have no end
_RAW = frozenset({"style"})  # know no escapes; what stands there is ours


def tag(name: str, /, *children: Child, **attributes: object) -> Element:
    """Return the element *name*; ``class_`` is the attribute ``class``, ``stroke_width`` is ``stroke-width``."""
    element = Element(name, {_attribute(key): _text(value) for key, value in attributes.items() if value is not None})
    for child in children:
        append(element, child)
    return element


def append(element: Element, child: Child) -> None:
    """Put *child* at the end of *element*; None is nothing."""
    if isinstance(child, Element):
        element.append(child)
    elif child is not None and len(element):
        element[-1].tail = (element[-1].tail or "") + child
    elif child is not None:
        element.text = (element.text or "") + child


def _attribute(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")


def _text(value: object) -> str:
    """Return coordinates in hundredths of a pixel, anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    rounded = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if rounded == "-0" else rounded


def serialise(document: Element) -> bytes:
    """Return a whole page; same tree, same bytes."""
    return f"<!DOCTYPE html>\n{''.join(_written(document))}\n".encode()


def _written(element: Element) -> Iterator[str]:
    """Yield *element* as HTML that is also XML, but for `_VOID` and `_RAW`.

    The serialiser of the standard library leaves ``<`` in attributes, which only HTML allows.
    """
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in element.attrib.items())
    yield f"<{element.tag}{attributes}>"
    if element.tag in _VOID:
        return
    text = element.text or ""
    yield text if element.tag in _RAW else escape(text)
    for child in element:
        yield from _written(child)
        yield escape(child.tail or "")
    yield f"</{element.tag}>"


def figure_of(value: float) -> str:
    """Return *value* in three digits, for people."""
    if not value:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:  # noqa: PLR2004
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")  # noqa: PLR2004


def percent(value: float) -> str:
    """Return a share in percent; a small one with more digits."""
    return f"{100 * value:.0f} %" if value >= 0.0995 or not value else f"{100 * value:.2g} %"  # noqa: PLR2004


def elided(text: str, limit: int) -> str:
    """Return *text* in at most *limit* characters, its middle left out: ends of paths tell more than their middles."""
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[: limit - 1 - half]}…{text[len(text) - half :]}"
