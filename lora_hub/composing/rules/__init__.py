"""The rules of composition that come with lora-hub, through the hook that anybody's come through."""

from __future__ import annotations

from lora_hub.composing.rules import breadcrumbs, dare, della, iso, linear, magnitude, sce, ties, tsv
from lora_hub.hookspecs import hookimpl
from lora_hub.rule import Rule

RULES: tuple[Rule, ...] = (
    linear.RULE,
    ties.RULE,
    dare.RULE,
    dare.WITH_TIES,
    della.RULE,
    breadcrumbs.RULE,
    magnitude.RULE,
    sce.RULE,
    tsv.RULE,
    iso.RULE,
)


@hookimpl
def lora_hub_rules() -> tuple[Rule, ...]:
    """Return the built-in rules."""
    return RULES
