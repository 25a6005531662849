"""LH005 to LH011 and LH018: does `adapter_config.json` say what can be applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.rules.documents import hit_of
from lora_hub.checking.subject import Subject
from lora_hub.documents.adapter_config import IMPLEMENTED, INERT, REQUIRED
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import CONFIG_NAME

_INIT = "init_lora_weights"
_PATTERNS = ("rank_pattern", "alpha_pattern")
# Initialisations that subtract the first A and B from the base, after which W + BA is no more what was trained.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _hits(subject: Subject, is_meant: Callable[[str], bool]) -> Iterator[Hit]:
    for key, error in subject.bad_keys.items():
        if key and is_meant(key):
            yield hit_of(error, file=CONFIG_NAME, place=key)


def _is_regex(subject: Subject, key: str) -> bool:
    """Whether what is wrong with the *key* is that one of its patterns is a regular expression."""
    return key in _PATTERNS and "regular expression" in subject.bad_keys[key].message


def _changes_base(subject: Subject, key: str) -> bool:
    value = subject.document.get(key)
    return key == _INIT and isinstance(value, str) and value.lower().startswith(_CHANGES_BASE)


@finds("LH005", "config-value")
def config_value(subject: Subject) -> Iterator[Hit]:
    """A key of `adapter_config.json` has a value of the wrong type, or out of its range.

    ## Why it matters

    `lora_alpha: "16"` or `r: 0` fails deep inside PEFT, with an error that does not name the file. A number such as
    `1e400` is read as infinity by some readers, and every output is NaN.

    ## Example

        `r`: expected an integer from 1 to 65536, found `0`

    ## How to mend it

    Write what the adapter was trained with. A null means the default: r = 8, lora_alpha = 8.
    """
    known = IMPLEMENTED - {"peft_type"}
    return _hits(subject, lambda key: key in known and not _is_regex(subject, key))


@finds("LH006", "config-key-unknown")
def config_key_unknown(subject: Subject) -> Iterator[Hit]:
    """The config has a key that nobody here knows, with a value that is not empty.

    ## Why it matters

    PEFT 0.14 and later ignore unknown keys with one generic warning, even if they alter the mathematics: an adapter of
    a newer PEFT is then applied wrongly, and nothing says so. What is not understood is refused here.

    ## Example

        {"peft_type": "LORA", "lora_gain": 2.0, …}

    ## How to mend it

    Upgrade lora-hub if the key is one of PEFT's. Remove it if it has no effect, as the keys that training frameworks
    add for themselves.
    """
    known = IMPLEMENTED | INERT | REQUIRED.keys()
    return _hits(subject, lambda key: key not in known)


@finds("LH007", "other-mathematics")
def other_mathematics(subject: Subject) -> Iterator[Hit]:
    """The config asks for more than W + (alpha/r) B A.

    DoRA, bias, trainable tokens, replicated layers, targets that are parameters, activated LoRA and others compute
    something else from A and B, or need tensors beside them.

    ## Why it matters

    Whoever applies only A and B of such an adapter gets wrong outputs without a message. PEFT itself does so if
    `use_dora` is true and the magnitudes are missing: it warns and computes with magnitudes of its own.

    ## Example

        {"use_dora": true, …}

    ## How to mend it

    Train plain LoRA, or convert the adapter: `peft.convert_to_lora` makes one of most methods, by a decomposition that
    keeps the rank that you ask for.
    """
    return _hits(subject, lambda key: key in REQUIRED and not _changes_base(subject, key))


@finds("LH008", "base-was-changed")
def base_was_changed(subject: Subject) -> Iterator[Hit]:
    """The adapter was initialised by a method that changed the base.

    PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA begin with an A and B that are taken out of W, and train on what is left.
    A and B alone are then not the difference to the base: `W + (alpha/r) B A` counts the beginning twice.

    ## Why it matters

    PEFT redoes the decomposition at every load and changes the base in memory; a server that does not, such as vLLM,
    computes something else (logits were off by 0.2 to 0.3 in our measurements).

    ## Example

        {"init_lora_weights": "pissa_niter_16", …}

    ## How to mend it

    Save it as the exact difference: `model.save_pretrained(out, path_initial_model_for_weight_conversion=initial)` in
    PEFT writes plain LoRA of twice the rank, and sets `init_lora_weights` to true.
    """
    return _hits(subject, lambda key: _changes_base(subject, key))


@finds("LH009", "not-lora")
def not_lora(subject: Subject) -> Iterator[Hit]:
    """`peft_type` is not LORA.

    PEFT has some 45 methods, and each has tensors of its own. lora-hub applies LoRA.

    ## Example

        {"peft_type": "IA3", …}

    ## How to mend it

    Check that it is the adapter that you meant. Others can be converted with `peft.convert_to_lora`, where PEFT can.
    """
    return _hits(subject, lambda key: key == "peft_type")


@finds("LH010", "pattern-is-a-regex")
def pattern_is_a_regex(subject: Subject) -> Iterator[Hit]:
    """A key of `rank_pattern` or `alpha_pattern` is a regular expression.

    ## Why it matters

    PEFT runs it against every module: one from a downloaded config can take for ever (ReDoS; we measured more than 15
    seconds on two layers). And it decides over rank and scaling, so it cannot be left out either.

    ## Example

        "rank_pattern": {"(a+)+$": 4}

    ## How to mend it

    Write one key for each module name, such as `"model.layers.0.self_attn.q_proj": 4`. Names and ends of names are
    understood; a dot may be escaped.
    """
    return _hits(subject, lambda key: _is_regex(subject, key))


@finds("LH011", "config-names-a-file")
def config_names_a_file(subject: Subject) -> Iterator[Hit]:
    """The config names a file that PEFT would unpickle.

    CorDA's and EVA's settings have paths of caches in them. They matter while the adapter is initialised, and never
    again; in a downloaded config they are a path on your machine that somebody else has chosen.

    ## Example

        "corda_config": {"cache_file": "/tmp/cov.pt"}

    ## How to mend it

    Remove the settings of the initialisation: nothing reads them once the adapter is trained.
    """
    return _hits(subject, lambda key: key in INERT)


@finds("LH018", "key-ignored", severity=Severity.NOTE)
def key_ignored(subject: Subject) -> Iterator[Hit]:
    """The config has keys that are not known here, and empty.

    A key that is null, false or empty switches nothing on, so it is accepted. It may be one of a newer PEFT.

    ## Example

        {"some_future_method": null, …}

    ## How to mend it

    Nothing needs to be done.
    """
    for key in subject.config.accepted_unknown if subject.config else ():
        yield Hit(
            message=f"the key {printable(key)} is not known here; it is empty, so it changes nothing",
            hint="nothing needs to be done; if it is one of PEFT's, a newer lora-hub may know it",
            file=CONFIG_NAME,
            place=key,
        )


CHECKS = (
    config_value,
    config_key_unknown,
    other_mathematics,
    base_was_changed,
    not_lora,
    pattern_is_a_regex,
    config_names_a_file,
    key_ignored,
)
