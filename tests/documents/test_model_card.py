"""The model card: the author's words stay, ours are written anew, and nothing of anybody's machine gets out."""

import dataclasses
import time

import pytest
import yaml
from adapter_files import adapter_files
from huggingface_hub import ModelCard, ModelCardData, RepoCard
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.manifest import Manifest, publish
from lora_hub.documents.model_card import update_card
from lora_hub.documents.verified_adapter import verify
from lora_hub.errors import MalformedError
from lora_hub.reference import AdapterRef
from lora_hub.version import Version

BEGIN, END = "<!-- lora-hub: written at each push, from here -->", "<!-- lora-hub: to here -->"
LOCAL = "/home/somebody/models/base"
SOON = 2.0  # seconds of work; what is refused or understood takes far less, what explodes far more


def described(base: str = "org/base") -> tuple[Manifest, AdapterConfig]:
    """Return the manifest of org/task@1.2.0, trained on *base*, and its config."""
    adapter = verify(adapter_files(base_model_name_or_path=base).files(), source="here")
    reference = AdapterRef.parse("org/task@1.2.0")
    content = publish(adapter.manifest.to_bytes(), reference=reference, created="2026-01-31T12:00:00Z")
    return Manifest.parse(content), adapter.config


MANIFEST, CONFIG = described()

DIGEST = f"sha256:{'3c' * 32}"


def updated(
    author: str | bytes = b"", current: bytes = b"", *, trained_on: str | None = None, versions=("1.2.0",), **changes
) -> bytes:
    """Return the card of a push with *author*'s card into a repository with *current*; *changes* are the manifest's."""
    manifest, config = (MANIFEST, CONFIG) if trained_on is None else described(trained_on)
    return update_card(
        current,
        author.encode() if isinstance(author, str) else author,
        manifest=dataclasses.replace(manifest, **changes),
        digest=DIGEST,
        config=config,
        versions=[Version.parse(version) for version in versions],
    )


def metadata(card: bytes) -> dict:
    """Return the metadata of *card*, as the Hub's own client reads it."""
    return RepoCard(card.decode()).data.to_dict()


def text(card: bytes) -> str:
    """Return what stands in *card* before our own section."""
    return RepoCard(card.decode()).text.partition(BEGIN)[0].strip()


def card_of(front: str, body: str = "# Mine\n\nMy words.\n") -> str:
    return f"---\n{front}\n---\n{body}"


# Metadata


def test_a_card_is_written_where_there_is_none():
    """Without any card, the repository gets one that says what it holds."""
    card = updated()

    assert text(card) == "# org/task"
    assert metadata(card) == {
        "library_name": "peft",
        "tags": ["lora", "lora-hub", "peft"],
        "base_model": "org/base",
        "base_model_relation": "adapter",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("license", "mit"),
        ("language", ["en", "no"]),
        ("language", "no"),
        ("pipeline_tag", "text-generation"),
        ("datasets", ["org/data"]),
        ("model_name", "Löwe \N{LION FACE}"),
        ("thumbnail", "---"),
        ("extra_gated_prompt", "line\n---\nline\n"),
        ("new_version", "org/task-2"),
        ("inference", False),
        ("co2_eq_emissions", {"emissions": 1.5, "source": "a\u2028b"}),
    ],
)
@pytest.mark.parametrize("place", ["author", "current"])
def test_the_authors_metadata_is_kept(key, value, place):
    """Whatever else stands in the metadata, beside the adapter or in the repository, stays as it is."""
    card = card_of(yaml.safe_dump({key: value}))
    result = updated(card) if place == "author" else updated(current=card.encode())

    assert metadata(result)[key] == value


def test_the_authors_metadata_counts_more_than_the_repositorys():
    """A key that both have is that of the author, who pushes now; keys of the repository stay."""
    result = updated(card_of("license: mit"), card_of("license: gpl-3.0\nlanguage: en").encode())

    assert metadata(result)["license"] == "mit"
    assert metadata(result)["language"] == "en"


def test_the_order_of_the_authors_metadata_is_kept():
    """Metadata is not sorted: a diff of two cards shows what changed."""
    keys = list(metadata(updated(card_of("pipeline_tag: text-generation\nlicense: mit\ndatasets: [org/data]"))))

    assert keys[:3] == ["pipeline_tag", "license", "datasets"]


@pytest.mark.parametrize("spelt", ["Apache-2.0", "MIT", "CC-BY-4.0"])
def test_the_license_is_that_of_the_manifest(spelt):
    """What the manifest says of the license is what the Hub shows, in the Hub's lower case."""
    assert metadata(updated(card_of("license: openrail"), license=spelt))["license"] == spelt.lower()


@pytest.mark.parametrize(
    "spelt", [None, "LicenseRef-mine", "MIT OR Apache-2.0", "mit\nlicense_link: https://example.org"]
)
def test_a_license_that_the_hub_does_not_know_is_not_written(spelt):
    """A license that the Hub would refuse the card for is left out, and what the author's card says stays."""
    assert metadata(updated(card_of("license: openrail"), license=spelt))["license"] == "openrail"
    assert "license" not in metadata(updated(license=spelt))


@pytest.mark.parametrize("written", ["base_model: org/wrong", f"base_model: {LOCAL}", "base_model: [a, b]", "{}"])
def test_the_base_is_that_of_the_manifest(written):
    """Whatever the card said of the base model, it is the one that the manifest names."""
    result = metadata(updated(card_of(written)))

    assert result["base_model"] == "org/base"
    assert result["base_model_relation"] == "adapter"


@pytest.mark.parametrize("repo", [LOCAL, "../base", "C:\\models\\base", None, "org/base/sub", "org/base@main", "."])
def test_a_base_that_is_no_name_on_the_hub_is_dropped(repo):
    """A path of somebody's machine is no base model, and what the author's card says of it is dropped as well."""
    author = card_of("base_model: org/other\nbase_model_relation: merge")
    result = metadata(updated(author, base=BaseModel(repo=repo)))

    assert "base_model" not in result
    assert "base_model_relation" not in result


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        ("[zebra, apple]", ["apple", "lora", "lora-hub", "peft", "zebra"]),
        ("[lora, peft, lora, apple, apple]", ["apple", "lora", "lora-hub", "peft"]),
        (f"['base_model:adapter:{LOCAL}', 'base_model:{LOCAL}', apple]", ["apple", "lora", "lora-hub", "peft"]),
        ("['base_model:adapter:org/base']", ["lora", "lora-hub", "peft"]),
        ("[{a: b}, [c], apple]", ["apple", "lora", "lora-hub", "peft"]),
        ("null", ["lora", "lora-hub", "peft"]),
        ("{a: b}", ["lora", "lora-hub", "peft"]),
    ],
)
def test_tags_are_sorted_and_stand_once(tags, kept):
    """Tags are sorted, each stands once, ours are among them; those that the Hub makes itself are left out."""
    assert metadata(updated(card_of(f"tags: {tags}")))["tags"] == kept


# Text


def test_the_authors_text_is_kept():
    """The author's words stand in the card as they were."""
    assert (
        text(updated("# Mine\n\nMy *words*.\n\n---\n\nMore — após\n")) == "# Mine\n\nMy *words*.\n\n---\n\nMore — após"
    )


def test_the_repositorys_text_stays_where_the_author_has_none():
    """Who pushes without a card leaves the words in the repository alone."""
    assert text(updated(current=b"# Theirs\n\nWords.\n")) == "# Theirs\n\nWords."


def test_the_authors_text_replaces_the_repositorys():
    """Who pushes a card replaces the words in the repository."""
    assert text(updated("# Mine", b"# Theirs")) == "# Mine"


def template(**filled: str) -> str:
    """Return the card that PEFT writes beside an adapter, with what its author filled in."""
    card = ModelCard.from_template(ModelCardData(), **filled)
    card.data.base_model = LOCAL
    return f"{card}\n### Framework versions\n\n- PEFT 0.21.2"


def test_a_template_says_nothing():
    """PEFT's template, as long as nobody filled it in, is no text: a heading stands there instead."""
    assert text(updated(template())) == "# org/task"


def test_a_template_does_not_replace_what_somebody_wrote():
    """PEFT's template beside the adapter leaves the words in the repository alone."""
    assert text(updated(template(), b"# Theirs\n\nWords.\n")) == "# Theirs\n\nWords."


@pytest.mark.parametrize(
    "filled",
    [
        {"model_id": "My model"},
        {"model_summary": "It does my task."},
        {"model_description": "It does my task.", "developers": "me"},
        {"direct_use": "Ask it for my task."},
    ],
    ids="_".join,
)
def test_a_template_that_was_filled_in_is_kept(filled):
    """A card into which its author wrote anything is the author's, whatever else was left open."""
    kept = text(updated(template(**filled)))

    assert all(words in kept for words in filled.values())


@pytest.mark.parametrize("path", [LOCAL, "./base", "../../base model", "C:\\models\\base", "~/base"])
def test_a_path_of_this_machine_does_not_get_into_the_text(path):
    """Where the author's text has the path of the base model, as trainers write it, the card does not."""
    result = updated(f"# Mine\n\nA fine-tuned version of [{path}](https://huggingface.co/{path}).\n", trained_on=path)

    assert path not in result.decode()
    assert "the base model" in text(result)


def test_a_path_of_this_machine_does_not_get_into_the_metadata():
    """Nor does it get into the card by a key of the metadata that trainers write."""
    result = updated(
        card_of(f"model_name: {LOCAL}\nbase_model: {LOCAL}\ntags: ['base_model:{LOCAL}']"), trained_on=LOCAL
    )

    assert LOCAL not in result.decode()


@pytest.mark.parametrize("path", [".", "/", "./"])
def test_a_path_that_is_hardly_one_leaves_the_text_alone(path):
    """A base model in the current directory is no reason to replace every full stop."""
    words = "# Mine\n\nMy words. See [this](./picture.png) and https://example.org/.\n"

    assert text(updated(words, trained_on=path)) == words.strip()


def test_the_name_of_the_base_stays_in_the_text():
    """A base model on the Hub is no secret."""
    assert "org/base" in text(updated("# Mine\n\nA fine-tuned version of org/base."))


# Our section


def test_our_section_says_how_to_use_this_version():
    """The section names the version, and the call that loads it, in ours and in PEFT's words."""
    section = updated().decode().partition(BEGIN)[2]

    assert "## Version 1.2.0" in section
    assert "r 2, alpha 4, 112 parameters in float32" in section
    assert 'apply_adapter(model, "org/task@1.2.0")' in section
    assert f"lora-hub trust pin org/task@1.2.0 --digest {DIGEST}" in section
    assert 'from_pretrained(model, "org/task", revision="v1.2.0")' in section
    assert section.endswith(f"{END}\n")


def rows(card: bytes) -> list[str]:
    return [line for line in card.decode().splitlines() if line.startswith("| ") and "`v" in line]


def test_the_table_lists_all_versions():
    """The newest version comes first; the newest release is marked, and so are pre-releases."""
    versions = ["1.2.0", "2.0.0-rc.1", "0.9.0", "1.10.0", "1.10.0-rc.2"]

    assert rows(updated(versions=versions)) == [
        "| 2.0.0-rc.1 | `v2.0.0-rc.1` | pre-release |",
        "| 1.10.0 | `v1.10.0` | newest release |",
        "| 1.10.0-rc.2 | `v1.10.0-rc.2` | pre-release |",
        "| 1.2.0 | `v1.2.0` | |",
        "| 0.9.0 | `v0.9.0` | |",
    ]


def test_pre_releases_alone_have_no_newest_release():
    """Where there are only pre-releases, none is called a release."""
    assert rows(updated(versions=["1.0.0-rc.1"])) == ["| 1.0.0-rc.1 | `v1.0.0-rc.1` | pre-release |"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("place", ["author", "current"])
def test_our_section_is_replaced(place, line_end):
    """The section is written anew at the next push and stands there once; the words around it stay."""
    first = updated("# Mine\n\nMy words.\n").decode().replace("\n", line_end) + f"{line_end}Below.{line_end}"
    second = dataclasses.replace(MANIFEST, version="1.3.0")
    author, current = (first.encode(), b"") if place == "author" else (b"", first.encode())
    versions = [Version.parse("1.2.0"), Version.parse("1.3.0")]
    result = update_card(current, author, manifest=second, digest=DIGEST, config=CONFIG, versions=versions).decode()

    assert (result.count(BEGIN), result.count(END), result.count("## Version")) == (1, 1, 1)
    assert "## Version 1.3.0" in result
    assert "My words." in result
    assert "Below." in result


# Whatever the author or the repository has


@pytest.mark.parametrize(
    "written",
    [
        "---\r\nlicense: mit\r\n---\r\n# Mine\r\n\r\nWords.\r\n",
        "---\nlicense: mit\n---\n# Mine\n\nWords.",
        "---\nlicense: mit\n---  \n# Mine\n\nWords.\n",
        "---  \nlicense: mit\n---\n\n\n\n# Mine\n\nWords.\n\n\n",
        "---\nlicense: mit\n# a comment: with a colon\n---\n# Mine\n\nWords.\n",
        "\ufeff---\nlicense: mit\n---\n# Mine\n\nWords.\n",
        "\n---\nlicense: mit\n---\n# Mine\n\nWords.\n",
    ],
    ids=["crlf", "no_final_new_line", "spaces", "blank_lines", "comment", "byte_order_mark", "blank_line_above"],
)
def test_metadata_is_found_however_it_is_written(written):
    """Whatever editor wrote the card, its metadata is metadata and its text is text."""
    result = updated(written)

    assert metadata(result)["license"] == "mit"
    assert text(result).replace("\r\n", "\n") == "# Mine\n\nWords."


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("---\nlicense: mit\n---", "# org/task"),
        ("---\n---\n# Mine", "# Mine"),
        ("# Mine\n\n---\n\nlicense: mit\n\n---\n", "# Mine\n\n---\n\nlicense: mit\n\n---"),
        ("---\nlicense: mit\n---\n# Mine\n\n---\nmore\n---\n", "# Mine\n\n---\nmore\n---"),
        ("---\nlicense: mit\n# Mine", "---\nlicense: mit\n# Mine"),
        ("----\nlicense: mit\n----\n", "----\nlicense: mit\n----"),
    ],
    ids=["metadata_alone", "no_metadata", "rules", "rules_below_metadata", "no_end", "four_dashes"],
)
def test_rules_in_the_text_are_no_metadata(written, kept):
    """Only what stands between two lines of three dashes at the very beginning is metadata."""
    assert text(updated(written)) == kept


BROKEN = {
    "not_closed": "license: [mit",
    "tab": "license:\n\t- mit",
    "text": "license",
    "list": "- license",
    "key_is_a_list": "? [a]\n: b",
    "unknown_alias": "license: *nobody",
    "two_documents": "license: mit\n... \nlicense: gpl",
    "control_character": "license: \x1b[2J",
    "right_to_left": "license: [\u202egpl",
}


@pytest.mark.parametrize("front", BROKEN.values(), ids=BROKEN.keys())
def test_malformed_metadata_of_the_author_is_refused(front):
    """What the author wrote is not thrown away in silence: exit code 8, one line, and what to do."""
    with pytest.raises(MalformedError, match=r"README\.md is malformed") as caught:
        updated(card_of(front))

    assert caught.value.exit_code == 8
    assert "mend it" in caught.value.hint


@pytest.mark.parametrize("front", BROKEN.values(), ids=BROKEN.keys())
def test_a_refusal_is_one_line(front):
    """What is refused is said in one line without anything that would move the cursor of a terminal."""
    with pytest.raises(MalformedError) as caught:
        updated(card_of(front))

    assert caught.value.message.isprintable()


@pytest.mark.parametrize("front", BROKEN.values(), ids=BROKEN.keys())
def test_a_malformed_card_in_the_repository_is_ignored(front):
    """What lies in the repository may be anything; it says nothing then, and a push repairs it."""
    assert updated("# Mine", card_of(front).encode()) == updated("# Mine")


# YAML by its grammar, but no reader of YAML takes it: each of these makes PyYAML, and the Hub, refuse the whole card.
UNREADABLE = {
    "python_object": "license: !!python/object/apply:os.system [ls]",
    "unknown_tag": "license: !mine mit",
    "date_is_none": "date: 2026-99-99",
    "boolean_is_none": "license: !!bool maybe",
    "integer_is_empty": "license: !!int ''",
    "number_is_empty": "license: !!float ''",
    "time_is_none": "license: !!timestamp maybe",
    "value_alone": "license: =",
    "merge_of_text": "<<: text",
    "too_many_digits": f"license: {'9' * 5000}",
}


@pytest.mark.parametrize("front", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_no_card_is_written_that_nobody_can_read(front):
    """What the author wrote is refused, or written so that others can read it."""
    try:
        card = updated(card_of(front))
    except MalformedError:
        return

    assert metadata(card)["base_model"] == "org/base"


@pytest.mark.parametrize("front", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_unreadable_card_in_the_repository_is_repaired(front):
    """What lies in the repository does not spoil the card that is written over it."""
    assert metadata(updated("# Mine", card_of(front).encode()))["base_model"] == "org/base"


NOT_TEXT = [b"\xff\xfe# Mine", "# Mine é".encode("latin-1"), b"---\nlicense: \x80\n---\n", "# Mine".encode("utf-16")]


@pytest.mark.parametrize("content", NOT_TEXT, ids=["bytes", "latin", "in_metadata", "utf_16"])
def test_a_card_that_is_no_text_is_malformed(content):
    """Bytes that are no UTF-8 are refused beside the adapter, and ignored in the repository."""
    with pytest.raises(MalformedError, match=r"README\.md is malformed"):
        updated(content)
    assert updated("# Mine", content) == updated("# Mine")


def doubling(levels: int, item: str) -> str:
    """Return YAML in which each of *levels* names the one before ten times; *item* says how."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{level}: &a{level} {item % ', '.join([f'*a{level - 1}'] * 10)}" for level in range(1, levels + 1)]
    return "\n".join(lines)


EXPLOSIVE = {
    "aliases": doubling(7, "[%s]"),
    "merged_mappings": doubling(7, "{<<: [%s]}"),
    "itself": "a: &a [*a]",
    "itself_as_a_mapping": "a: &a {b: *a}",
    "deep": f"a: {'[' * 20_000}",
    **{f"{depth}_deep": f"a: {'[' * depth}{']' * depth}" for depth in (100, 300, 350, 400, 450, 1000)},
    "hexadecimal": f"a: 0x{'f' * 5000}",
    "binary": f"a: 0b{'1' * 100_000}",
    "sexagesimal": f"a: {'1:' * 3000}1",
    "digits": f"a: {'9' * 5000}",
    "long_line": f"a: {'x ' * 20_000}",
}


@pytest.mark.parametrize("front", EXPLOSIVE.values(), ids=EXPLOSIVE.keys())
@pytest.mark.parametrize("place", ["author", "current"])
def test_explosive_metadata_does_no_harm(front, place):
    """Metadata that grows when it is read, or is nested without end, is read or refused, and soon."""
    card = card_of(front).encode()
    begin = time.process_time()
    try:
        result = updated(card) if place == "author" else updated(current=card)
    except MalformedError:
        assert place == "author"
    else:
        assert len(result) < 3 * len(card) + 10_000
    assert time.process_time() - begin < SOON


@pytest.mark.parametrize("line", [f"{BEGIN}\n", "---\n", "-- \n", f"{END}\n", "\r\n", "<!--\n"], ids=repr)
@pytest.mark.parametrize("place", ["author", "current"])
def test_a_long_card_is_read_soon(line, place):
    """A card that repeats our own marks, or those of metadata, costs no more time than another one of its size."""
    card = b"# Mine\n" + line.encode() * (100_000 // len(line))
    begin = time.process_time()
    updated(card) if place == "author" else updated(current=card)

    assert time.process_time() - begin < SOON


MARKS = ["---", "[", "]", "{", "}", ": ", "&a ", "*a", "'", '"', "#", "|", ">", "<<: ", "? ", "- a", BEGIN, END]
WORDS = [
    "license: mit",
    "tags:",
    "!!int ''",
    "!!bool x",
    "no",
    "1:2",
    "2026-01-31",
    "é",
    "\ufeff",
    "\u2028",
    "\x85",
    "\t",
]
PIECES = st.sampled_from([*MARKS, *WORDS, "\n", "\r\n", " "])
CARDS = st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=15).map("".join)


@given(author=st.one_of(st.binary(max_size=50), CARDS.map(str.encode)), current=CARDS.map(str.encode))
def test_any_card_is_understood_or_refused(author, current):
    """No card beside the adapter or in the repository raises anything but an error of ours."""
    try:
        card = updated(author, current)
    except MalformedError:
        return

    assert metadata(card)["base_model"] == "org/base"


@given(current=CARDS.map(str.encode))
def test_no_card_in_the_repository_stops_a_push(current):
    """Whatever somebody put into the repository, a card can be written."""
    assert metadata(updated("# Mine", current))["tags"][-1] == "peft"


# Idempotence, and other readers


IDEMPOTENT = {
    "nothing": "",
    "text": "# Mine\n\nWords.\n",
    "metadata": card_of("license: mit\nlanguage: [en, 'no']\ntags: [b, a]\nmodel_name: Löwe\ndate: 2026-01-31"),
    "crlf": "---\r\nlicense: mit\r\n---\r\n# Mine\r\n\r\nWords.\r\n",
    "rules": "# Mine\n\n---\n\nWords.\n\n---\n",
    "rule_first": card_of("license: mit", "---\nwords: mine\n---\n"),
    "below_our_section": f"# Mine\n\n{BEGIN}\nold\n{END}\n\nBelow.\n",
    "two_sections": f"# Mine\n{BEGIN}\nold\n{END}\n{BEGIN}\nold\n{END}\nBelow.\n",
    "begin_without_end": f"# Mine\n\n{BEGIN}\n\nWords.\n",
    "end_without_begin": f"# Mine\n\n{END}\n\nWords.\n",
    "long_strings": card_of(yaml.safe_dump({"a": "word " * 1000, "b": "line\n---\nline", "c": "x" * 2000})),
    "odd_types": card_of("a: !!set {x, y}\nb: !!binary AAAA\nc: .inf\nd: 1:30\ne: 2026-01-31T12:00:00Z\nf: ~"),
    "aliases": card_of("a: &a [1, 2]\nb: *a"),
    "template": template(),
    "spaces": "   \n\t\n",
}


@pytest.mark.parametrize("written", IDEMPOTENT.values(), ids=IDEMPOTENT.keys())
@pytest.mark.parametrize("place", ["author", "current", "both"])
def test_updating_twice_is_updating_once(written, place):
    """A card that is pushed again, by whichever way, is the same card, to the byte."""
    once = updated(written)
    author, current = (once if place != "current" else b""), (once if place != "author" else b"")

    assert updated(author, current) == once


@given(CARDS)
def test_updating_any_card_twice_is_updating_it_once(written):
    """The same, for whatever the author wrote."""
    try:
        once = updated(written)
    except MalformedError:
        return

    assert updated(once) == once
    assert updated(b"", once) == once


@pytest.mark.parametrize("written", IDEMPOTENT.values(), ids=IDEMPOTENT.keys())
def test_the_hubs_client_reads_the_card(written):
    """The Hub's own client reads the metadata of every card, strictly, and the same as PyYAML does."""
    card = ModelCard(updated(written).decode())

    assert isinstance(card.data, ModelCardData)
    assert card.data.base_model == "org/base"
    assert card.data.library_name == "peft"
    assert set(card.data.tags) >= {"lora", "lora-hub", "peft"}
    assert card.content.startswith("---\n")
