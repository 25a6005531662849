"""The schemas that ship with the package."""

import json

import pytest

from lora_hub.documents import schemas
from lora_hub.errors import NotFoundError


@pytest.mark.parametrize("name", schemas.schema_names())
def test_a_schema_is_found_by_name(name):
    """Every schema that is listed can be read, and says which draft and which version it is of."""
    document = json.loads(schemas.schema(name))

    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["$id"] == f"urn:lora-hub:schema:{name}:{schemas.VERSION}"


def test_the_manifest_has_a_schema():
    """The manifest is one of the documents that have a schema."""
    assert "manifest" in schemas.schema_names()


@pytest.mark.parametrize("name", ["", "lockfile.schema.json", "../v1/manifest", "manifest.schema.json", "/etc/passwd"])
def test_an_unknown_schema_is_not_found(name):
    """Any other name, a path included, is not found; the hint says what there is."""
    with pytest.raises(NotFoundError) as caught:
        schemas.schema(name)

    assert "manifest" in caught.value.hint
