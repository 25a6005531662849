"""LH205 to LH207 and LH214: do heads, embedding and vocabulary fit the base, and is the adapter smaller than it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.rules.base_modules import is_tied
from lora_hub.checking.rules.numbers import some
from lora_hub.checking.subject import Subject
from lora_hub.checkpoint.token_layers import is_embedding, is_output
from lora_hub.documents.manifest import CONFIG_NAME, WEIGHTS_NAME

_OTHER_BASE = "name the base that the adapter was trained on"
_WEIGHT = ".weight"


@finds("LH205", "head-differs", concerns_base=True)
def head_differs(subject: Subject) -> Iterator[Hit]:
    """A module in `modules_to_save` has another shape in the base.

    A replaced module takes the place of the base's own. A classifier of other labels than the base was configured with,
    or a vocabulary with fewer tokens, cannot.

    ## Example

        `classifier.weight` is [3, 768] in the adapter and [2, 768] in the base

    ## How to mend it

    Load the base with the same number of labels (`num_labels=3`), or name the base that it was trained on.
    """
    fit = subject.fit
    if fit is None or fit.base.is_quantised:
        return
    for path, keys in subject.heads.items():
        for parameter, key in keys.items():
            shape = subject.tensors[key].shape
            other, _ = fit.base.shape(f"{fit.prefix(path)}.{parameter}")
            is_grown = (is_embedding(path) or is_output(path)) and other and other[1:] == shape[1:] and other < shape
            if other is not None and other != shape and not is_grown:
                yield Hit(
                    message=f"`{path}.{parameter}` is {list(shape)} in the adapter and {list(other)} in the base",
                    hint="load the base with the same number of labels or tokens",
                    file=WEIGHTS_NAME,
                    place=path,
                )


@finds("LH206", "tied-embeddings", severity=Severity.WARNING, concerns_base=True)
def tied_embeddings(subject: Subject) -> Iterator[Hit]:
    """The adapter changes the embedding or the output of a base that keeps one tensor for both.

    ## Why it matters

    Changing one of them unties them, or changes the other as well. PEFT's `merge_and_unload` only warns and the output
    is wrong afterwards (off by 0.28 in our measurement); servers differ in what they do.

    ## Example

    `"target_modules": ["q_proj", "lm_head"]` on a base with `tie_word_embeddings: true`.

    ## How to mend it

    Leave embedding and output out of the targets. If they were trained, merge with `lora-hub merge`, which writes both
    tensors and unties them in the config.
    """
    if subject.base is None or not is_tied(subject):
        return
    if subject.base.has(f"{subject.fit.prefix('lm_head') if subject.fit else 'lm_head'}{_WEIGHT}"):
        return  # both are stored: whatever the config says, they are two
    concerned = [path for path in (*subject.paths, *subject.heads) if is_output(path) or is_embedding(path)]
    if concerned:
        yield Hit(
            message=f"the base ties embedding and output, and the adapter changes {some(concerned)}",
            hint="train without it, or merge it with `lora-hub merge`, which unties them",
            file=CONFIG_NAME,
            place=concerned[0],
        )


@finds("LH207", "vocabulary", severity=Severity.WARNING, concerns_base=True)
def vocabulary_grows(subject: Subject) -> Iterator[Hit]:
    """The adapter brings more rows of embedding or output than the base's vocabulary has.

    The tokenizer was extended before training. The base must be resized in the same way before the adapter is applied,
    and its new tokens are known to the adapter's tokenizer only.

    ## Example

        `model.embed_tokens` has 32,002 rows in the adapter, the vocabulary of the base has 32,000

    ## How to mend it

    Publish the tokenizer beside the adapter, and say in its card that `model.resize_token_embeddings(32002)` comes
    first. `lora-hub merge` writes a checkpoint with the larger vocabulary.
    """
    tokens = subject.base.setting("vocab_size") if subject.base else None
    if not isinstance(tokens, int):
        return
    for path, keys in subject.heads.items():
        shape = subject.tensors[keys["weight"]].shape if "weight" in keys else ()
        if (is_embedding(path) or is_output(path)) and shape and shape[0] > tokens:
            yield Hit(
                message=f"`{path}` has {shape[0]:,} rows in the adapter, the vocabulary of the base has {tokens:,}",
                hint=f"resize the base first (`resize_token_embeddings({shape[0]})`), and ship the tokenizer",
                file=WEIGHTS_NAME,
                place=path,
            )


@finds("LH214", "larger-than-base", severity=Severity.WARNING, concerns_base=True)
def larger_than_base(subject: Subject) -> Iterator[Hit]:
    """The adapter has as many parameters as a good part of the base.

    Low-rank adaptation has a thousandth to a few hundredths of the base's parameters. An adapter of half of them holds
    whole modules, or a rank that is not low: the merged model would be the smaller download.

    ## Example

    `modules_to_save: ["model"]`, which saves the whole backbone.

    ## How to mend it

    Look at `modules_to_save`, and at the rank.
    """
    if subject.base is None or not subject.base.is_whole or subject.base.unread or subject.base.is_quantised:
        return
    whole = sum(math.prod(info.shape) for info in subject.base.tensors.values())
    own = sum(math.prod(info.shape) for info in subject.tensors.values())
    if 2 * own > whole > 0:
        yield Hit(
            message=f"the adapter has {own:,} parameters, the base {whole:,}",
            hint="look at `modules_to_save` and at the rank",
            file=WEIGHTS_NAME,
        )


CHECKS = (
    head_differs,
    tied_embeddings,
    vocabulary_grows,
    larger_than_base,
)
