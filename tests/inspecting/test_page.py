"""The page: read as strictly as a browser is lenient."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from inspected import QUERY, adapter, draw, inspect, module

from lora_hub.inspecting import blocks
from lora_hub.inspecting.analysis import analyse
from lora_hub.inspecting.markup import figure_of
from lora_hub.inspecting.page import page

HOSTILE = "</style><script>alert(1)</script>\"'><img src=x onerror=y>&amp;"
VOID = {"meta"}


class Reader(HTMLParser):
    """Reads a page and insists that every element is closed where it should be."""

    def __init__(self, content):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        """Remember an element."""
        assert len(dict(attrs)) == len(attrs), "an attribute stands twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Insist that it is the innermost one that ends."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Remember text, and what it stands in."""
        self.texts.append((tuple(self.open), data))

    def names(self):
        """Return which elements there are."""
        return {tag for tag, _ in self.elements}

    def text(self):
        """Return what is not style."""
        return " ".join(data for path, data in self.texts if "style" not in path)


def pictures(content):
    """Return every SVG of the page, read as XML."""
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", content.decode(), re.DOTALL)]


def titles(content):
    """Return what every cell and point of the plots says."""
    return [title.text for picture in pictures(content) for title in picture.iter("title")]


def layers(count, *, seed=0, names=("q", "v")):
    """Return an adapter of so many layers."""
    places = [(n, name) for n in range(count) for name in names]
    return {f"model.layers.{n}.self_attn.{name}_proj": module(seed=seed + i) for i, (n, name) in enumerate(places)}


@pytest.fixture(scope="module")
def several():
    return inspect(layers(3), layers(3, seed=50), layers(2, seed=90, names=("q", "k")))


@pytest.fixture(scope="module")
def content(several):
    return page(several)


def test_the_page_is_well_formed(content):
    """Every element is closed in its order, and every picture is XML."""
    reader = Reader(content)

    assert reader.open == []
    assert content.startswith(b"<!DOCTYPE html>\n<html")
    assert len(pictures(content)) > 10


def test_the_page_loads_nothing_and_runs_nothing(content):
    """There is no script, no link, no address; and the policy forbids what might be overlooked."""
    reader = Reader(content)
    policies = [found["content"] for tag, found in reader.elements if found.get("http-equiv")]
    names = {name for _, found in reader.elements for name in found}

    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    assert not {"script", "link", "img", "iframe", "object", "a", "base", "image", "use"} & reader.names()
    assert not [name for name in names if name.startswith("on") or name in {"src", "href", "style", "xlink:href"}]
    assert b"url(" not in content
    assert b"@import" not in content


def test_the_same_adapters_have_the_same_page(content):
    """The page has no time and no order of its own."""
    again = page(inspect(layers(3), layers(3, seed=50), layers(2, seed=90, names=("q", "k"))))

    assert again == content


def test_every_norm_is_in_a_heat_map(several, content):
    """A cell of the heat map says layer, projection and norm of its module."""
    said = titles(content)

    for one in several.adapters:
        for delta in one.modules:
            _, _, layer, _, name = delta.path.split(".")
            assert f"layer {layer}, {name}: {figure_of(delta.norm)}" in said


def test_colours_follow_the_norms(several, content):
    """The largest norm of all has the last colour, and no smaller one has a later colour."""
    high = max(delta.norm for one in several.adapters for delta in one.modules)
    cells = [
        (float(title.text.split(": ")[1]), int(rect.get("class")[1:]))
        for picture in pictures(content)
        for rect in picture.iter("rect")
        if (title := rect.find("title")) is not None and title.text.startswith("layer ")
    ]

    assert max(cells)[1] == 11
    assert [colour for _, colour in sorted(cells)] == sorted(colour for _, colour in cells)
    assert all(abs(norm / high * 12 - colour - 0.5) <= 0.6 for norm, colour in cells)


def test_every_cosine_is_in_the_matrix(several, content):
    """Both cells of a pair have its cosine."""
    said = titles(content)

    for pair in several.pairs:
        names = [several.adapters[position].name for position in (pair.one, pair.other)]
        cosine = f"{round(pair.cosine, 3) + 0.0:.3f}".replace("-", "\u2212")
        assert f"{names[0]} and {names[1]}: {cosine}" in said
        assert f"{names[1]} and {names[0]}: {cosine}" in said


def test_points_lie_inside_of_their_pictures(content):
    """Nothing is drawn outside of the frame, where nobody would see it."""
    for picture in pictures(content):
        width, height = (float(size) for size in picture.get("viewBox").split()[2:])
        for circle in picture.iter("circle"):
            assert 0 <= float(circle.get("cx")) <= width
            assert 0 <= float(circle.get("cy")) <= height


def test_pictures_can_be_read_out(content):
    """Every picture says what it shows, and every header of a table says whose it is."""
    reader = Reader(content)

    assert all(picture.get("role") == "img" and picture.get("aria-label") for picture in pictures(content))
    assert all(found.get("scope") in {"col", "row"} for tag, found in reader.elements if tag == "th")


def test_hostile_names_are_text():
    """Whatever an adapter or a head is called is shown as it is, and never becomes an element."""
    content = page(analyse([adapter(HOSTILE, layers(2)), adapter(f"{HOSTILE}2", layers(2, seed=5))]))
    reader = Reader(content)

    assert HOSTILE in reader.text()
    assert not {"script", "img"} & reader.names()
    assert all(picture.tag == "svg" for picture in pictures(content))


@pytest.mark.parametrize("name", ["x" * 5000, "\u200b", "\ud800".encode("utf-8", "replace").decode(), "名前", " "])
def test_odd_names_are_shown(name):
    """Long, empty-looking and foreign names have a page as well."""
    assert Reader(page(analyse([adapter(name, layers(1))]))).open == []


def test_one_adapter_has_a_page_without_comparisons():
    """A page of one adapter has nothing about pairs."""
    text = Reader(page(inspect(layers(2)))).text()

    assert "Inspection of a" in text
    assert "get on with each other" not in text
    assert "contradict" not in text


def test_zero_and_lonely_modules_have_a_page():
    """Adapters without any layer, with zero deltas, with experts, and without a common module can be drawn."""
    B, A = module()
    content = page(
        inspect(
            {"head": (B, A)},
            {"head": (0 * B, A), "pooler.dense": (B, A)},
            {f"model.layers.1.experts.{n}.up": module(seed=n) for n in range(3)},
        )
    )

    assert Reader(content).open == []
    assert any(title.startswith("layer 1, up: ") and title.endswith("(3 modules)") for title in titles(content))


def test_the_page_of_a_large_adapter_is_bounded():
    """Layers, projections and adapters beyond what can be read are left out, and the page says how many."""
    small = draw(1, 1)
    tall = {f"layers.{n}.q": (small, small) for n in range(blocks.MAX_LAYERS + 72)}
    wide = {f"layers.0.p{n}": (small, small) for n in range(blocks.MAX_KINDS + 10)}
    content = page(inspect({**tall, **wide}, *({QUERY.format(0): (small, small)} for _ in range(blocks.MAX_COMPARED))))
    text = Reader(content).text()

    assert len(content) < 2_000_000
    assert "72 more layers are left out here" in text
    assert "12 more projections are left out here" in text  # q of the tall one and of the others
    assert f"{blocks.MAX_COMPARED + 1 - blocks.MAX_DRAWN} more adapters are left out here" in text
    assert "1 more adapter is left out here" in text


def test_long_names_do_not_make_the_page_long():
    """Names of adapters and modules are shortened, and modules whose names are alike then are still apart."""
    alike = [f"{'a' * 140}.{'b' * 75}{side}{'b' * 75}.{'c' * 140}" for side in "xy"]
    content = page(analyse([adapter("n" * 9000, {path: module(seed=n) for n, path in enumerate(alike)})]))
    cells = [title for title in titles(content) if ": " in title]

    assert len(content) < 50_000
    assert len({title.partition(": ")[0].partition(", singular")[0] for title in cells if title.startswith("b")}) == 2


def test_a_high_rank_has_few_points():
    """The spectrum of a high rank is drawn with as many points as can be told apart, the last one among them."""
    content = page(inspect({QUERY.format(0): (draw(300, 256), draw(256, 300, seed=1))}))
    said = [title for title in titles(content) if "singular value" in title]

    assert len(said) == 64
    assert any("singular value 256:" in title for title in said)
