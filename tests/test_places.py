"""Where lora-hub keeps things on this machine."""

from pathlib import Path

import pytest

from lora_hub.errors import UsageError
from lora_hub.places import HOME, store_directory, trust_file

PLACES = pytest.mark.parametrize(
    ("place", "name"), [(store_directory, "store"), (trust_file, "trust.toml")], ids=["store", "trust"]
)


@pytest.fixture
def user(tmp_path, monkeypatch) -> Path:
    """The home of a user who has set nothing."""
    for name in (HOME, "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    return tmp_path / "user"


@PLACES
def test_the_environment_says_where(user, monkeypatch, tmp_path, place, name):
    """Where `LORA_HUB_HOME` is set, everything lies there."""
    monkeypatch.setenv(HOME, str(tmp_path / "elsewhere"))

    assert place() == tmp_path / "elsewhere" / name


@pytest.mark.parametrize("is_empty", [False, True], ids=["unset", "empty"])
def test_without_it_the_platform_says_where(user, monkeypatch, is_empty):
    """What may be deleted at any time is a cache; whom the user trusts is configuration. An empty variable is none."""
    if is_empty:
        monkeypatch.setenv(HOME, "")

    assert store_directory() == user / ".cache" / "lora-hub" / "store"
    assert trust_file() == user / ".config" / "lora-hub" / "trust.toml"


def test_the_platforms_own_variables_count(user, monkeypatch, tmp_path):
    """Who moved caches and configuration elsewhere finds ours there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    assert store_directory() == tmp_path / "cache" / "lora-hub" / "store"
    assert trust_file() == tmp_path / "config" / "lora-hub" / "trust.toml"


def test_our_own_variable_counts_more(user, monkeypatch, tmp_path):
    """`LORA_HUB_HOME` wins over those of the platform."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv(HOME, str(tmp_path / "home"))

    assert trust_file() == tmp_path / "home" / "trust.toml"


@PLACES
@pytest.mark.parametrize("text", ["~", "~/adapters"])
def test_a_tilde_is_the_users_home(user, monkeypatch, text, place, name):
    """A tilde that no shell has expanded is the home of the user."""
    monkeypatch.setenv(HOME, text)

    assert place() == user / text.removeprefix("~").lstrip("/") / name


@PLACES
def test_a_relative_directory_is_one_of_where_we_are(user, monkeypatch, tmp_path, place, name):
    """What is not absolute is made so: a change of directory later does not move it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(HOME, "here")

    assert place() == tmp_path / "here" / name


@PLACES
def test_an_unknown_user_is_refused(user, monkeypatch, place, name):
    """The home of a user who does not exist is a mistake with exit code 2, and names the variable to set."""
    monkeypatch.setenv(HOME, "~no-such-user-here/adapters")
    with pytest.raises(UsageError, match="~no-such-user-here/adapters") as caught:
        place()

    assert caught.value.exit_code == 2
    assert HOME in caught.value.hint


@PLACES
def test_nothing_is_made_before_it_is_needed(user, place, name):
    """Asking where something lies does not create it."""
    place()

    assert not user.exists()
