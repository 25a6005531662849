"""LH208 to LH210 and LH220 to LH222: is the base that was given the one that the adapter was trained on."""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.subject import Subject
from lora_hub.documents.base_verdict import Outcome, Verdict
from lora_hub.documents.fields import printable
from lora_hub.documents.verified_adapter import hub_name
from lora_hub.reference import is_commit


@finds("LH208", "base-name-differs", concerns_base=True)
def base_name_differs(subject: Subject) -> Iterator[Hit]:
    """The adapter names another base model than the one that it is checked against.

    ## Why it matters

    `base_model_name_or_path` is never compared by PEFT: an adapter of one model loads on any other of the same shapes,
    and the outputs are those of neither.

    ## Example

    The config says `meta-llama/Llama-2-7b-hf`, and `--base mistralai/Mistral-7B-v0.1` was given.

    ## How to mend it

    Name the adapter's own base. For a mirror or a sibling on purpose: `--ignore LH208`, and `allow_other_base` when it
    is applied.
    """
    named, repo = subject.named_base, subject.base.repo if subject.base else None
    if repo is None or hub_name(named) is None or str(named).lower() == repo.lower():
        return
    yield Hit(
        message=f"the adapter names the base {printable(named)}, it is checked against {printable(repo)}",
        hint="name the adapter's own base; ignore this rule if the two are the same weights",
        place="base",
    )


@finds("LH209", "model-type-differs", concerns_base=True)
def model_type_differs(subject: Subject) -> Iterator[Hit]:
    """The adapter was made for another family of models.

    The manifest has the `model_type` of the base that the adapter was trained on. Families share names of modules:
    LLaMA, Mistral and Qwen 2 all have `self_attn.q_proj`.

    ## Example

    The manifest says `mistral`, the base's config says `llama`.

    ## How to mend it

    Name the base that the adapter was trained on.
    """
    made_for = subject.manifest.base.model_type if subject.manifest else None
    found = subject.base.model_type if subject.base else None
    if None not in {made_for, found} and made_for != found:
        yield Hit(
            message=f"the adapter was made for a base of type {printable(made_for)}, this one is of type "
            f"{printable(found)}",
            hint="name the base that the adapter was trained on",
            place="base.model_type",
        )


@finds("LH210", "revision-differs", severity=Severity.WARNING, concerns_base=True)
def revision_differs(subject: Subject) -> Iterator[Hit]:
    """The adapter was trained on another commit of the base's repository.

    Weights under one name change: a repository is fixed, re-uploaded in another dtype, or trained on. The manifest has
    the commit that it was, where that is known.

    ## How to mend it

    Check against that commit: `--base org/model@<commit>`. If only the card has changed since, ignore this rule.
    """
    base = subject.base
    named = subject.manifest.base.revision if subject.manifest else None
    if base is None or base.commit is None or named is None or not is_commit(named) or subject.named_base != base.repo:
        return
    if named != base.commit:
        yield Hit(
            message=f"the adapter was trained on the commit {named} of `{base.repo}`, this is {base.commit}",
            hint=f"check against `{base.repo}@{named}`",
            place="base.revision",
        )


def _recorded(subject: Subject) -> Verdict | None:
    """Return the verdict on the base, if anything of the base was recorded."""
    base = subject.manifest.base if subject.manifest else None
    return subject.verdict if base is not None and (base.fingerprint is not None or base.shards) else None


@finds("LH220", "other-weights", concerns_base=True)
def other_weights(subject: Subject) -> Iterator[Hit]:
    """The base has other weights than the one that the adapter was trained on.

    The manifest has a fingerprint: some weights of every tensor that the adapter changes, in the dtype in which they
    were seen. Here a recorded number and the base's cannot be one number, however either was rounded.

    ## Why it matters

    A base of the same shapes loads without a word: a model that was trained on, a merge, the next release. The outputs
    are then those of no model that was ever evaluated.

    ## Example

    An adapter of `org/base-instruct`, on `org/base`.

    ## How to mend it

    Name the base that it was trained on. On a sibling on purpose: `--ignore LH220`, and `allow_other_base` when it is
    applied.
    """
    verdict = _recorded(subject)
    if verdict is not None and verdict.is_other and subject.manifest is not None and subject.base is not None:
        yield Hit(
            message=f"`{subject.base.name}` is not the base that the adapter was trained on "
            f"({printable(str(subject.manifest.base))}): {verdict.reason}",
            hint="name that base; `allow_other_base` applies the adapter to another one all the same",
            place="base.fingerprint",
        )


@finds("LH221", "weights-undecided", severity=Severity.NOTE, concerns_base=True)
def weights_undecided(subject: Subject) -> Iterator[Hit]:
    """Whether the base has the weights that the adapter was trained on is not decided.

    Digests of the base's files decide if they are the recorded ones. Otherwise weights are compared: of a base on this
    machine always, of one on the Hub only with `--sample`, which reads every header and makes up to 64 requests more. A
    narrower dtype or a quantised base cannot tell a sibling that was trained for a few steps.

    With `--require-base` this is an error.

    ## How to mend it

    Add `--sample`, or check against a directory with the base in the dtype that it was trained in.
    """
    verdict = _recorded(subject)
    if verdict is not None and verdict.outcome is Outcome.UNDECIDED:
        yield Hit(
            message=f"whether it is the base that the adapter was trained on is not decided: {verdict.reason}",
            hint="add --sample, or check against a directory with the base",
            place="base.fingerprint",
            severity=Severity.ERROR if subject.requires_base else Severity.NOTE,
        )


@finds("LH222", "no-fingerprint", severity=Severity.NOTE, concerns_base=True)
def no_fingerprint(subject: Subject) -> Iterator[Hit]:
    """The adapter has no fingerprint of its base, so another base of the same shapes is not noticed.

    Adapters that PEFT wrote have none. `save_adapter` records it, in a few kilobytes.

    With `--require-base` this is an error.

    ## How to mend it

    Apply the adapter to its base with `trainable=True` and save it with `save_adapter`.
    """
    if subject.verdict is not None and _recorded(subject) is None:
        yield Hit(
            message="the adapter has no fingerprint of its base: another one of the same shapes is not noticed",
            hint="save it with `save_adapter`, which records one",
            place="base.fingerprint",
            severity=Severity.ERROR if subject.requires_base else Severity.NOTE,
        )


CHECKS = (base_name_differs, model_type_differs, revision_differs, other_weights, weights_undecided, no_fingerprint)
