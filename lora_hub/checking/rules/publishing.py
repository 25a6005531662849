"""LH401 to LH409: may it be published, and does it say what others need to know."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.reading import files_beside
from lora_hub.checking.rules.numbers import some
from lora_hub.checking.subject import Subject
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import CARD_NAME, CONFIG_NAME, MANIFEST_NAME, MAX_CARD, WEIGHTS_NAME
from lora_hub.documents.verified_adapter import hub_name

LARGE = 2 * 1024**3  # bytes of weights
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LIBRARIES = ("transformers", "peft", "diffusers", "sentence_transformers", "torch")
_FIELD = re.compile(rb"^license:[ \t]*[\"']?([A-Za-z0-9.+-]+)", re.MULTILINE)
_FRONT = re.compile(rb"\A\s*---[ \t]*\r?\n(.*?)^---", re.DOTALL | re.MULTILINE)
# Licenses that allow everything, as long as they are named; and how those begin that pass limits on.
_FREE = frozenset({"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense", "isc"})
_PASSED_ON = tuple(
    "cc-by-nc llama gemma openrail bigscience creativeml deepseek qwen-research agpl gpl".split()  # noqa: SIM905
)


def _license_of(card: bytes) -> str | None:
    """Return the license that the metadata of a model card names, in lower case; nothing of the YAML is built."""
    front = _FRONT.match(card)
    found = _FIELD.search(front[1]) if front else None
    return found[1].decode().lower() if found else None


def _own_license(subject: Subject) -> str | None:
    written = subject.manifest.license if subject.manifest else None
    return written.lower() if written else _license_of(bytes(subject.files.get(CARD_NAME, b"")))


@finds("LH401", "license-missing", severity=Severity.NOTE)
def license_missing(subject: Subject) -> Iterator[Hit]:
    """Neither the manifest nor the model card says under which license the adapter is.

    Without one, nobody but you may use it. An adapter is made from its base, and the base's license may limit yours.

    ## How to mend it

    Write `license: apache-2.0` (or another) into the metadata of `README.md`, or pass `license=` to `save_adapter`.
    """
    if _own_license(subject) is None:
        yield Hit(message="it says nothing of a license", hint="write `license:` into the metadata of README.md")


@finds("LH402", "license-contradicts", severity=Severity.WARNING, concerns_base=True)
def license_contradicts(subject: Subject) -> Iterator[Hit]:
    """The adapter is under a license that its base's license does not leave room for.

    Licenses such as those of LLaMA and Gemma, CC BY-NC, OpenRAIL and the GPL pass their limits on to what is made from
    the model. An adapter under a license that allows everything promises what its author may not promise.

    This compares names. It is no legal advice.

    ## Example

    The base is `cc-by-nc-4.0`, the adapter `apache-2.0`.

    ## How to mend it

    Take the base's license, or ask whoever knows. If the adapter's own files may be under it, ignore this rule.
    """
    base = _license_of(subject.base.card) if subject.base else None
    own = _own_license(subject)
    if base is not None and own in _FREE and base.startswith(_PASSED_ON):
        yield Hit(
            message=f"the adapter is under {printable(own)}; {printable(base)} of its base limits what is made of it",
            hint="take the license of the base, or ask whoever knows",
            file=MANIFEST_NAME,
            place="license",
        )


@finds("LH403", "large", severity=Severity.WARNING)
def large(subject: Subject) -> Iterator[Hit]:
    """The weights have more than 2 GiB.

    Nearly every adapter has 5 to 500 MB. Policies limit what is pulled (`max_size`), and whoever only wants to try it
    has to wait.

    ## Example

    An adapter in float32 with embedding and output in `modules_to_save`.

    ## How to mend it

    Save in bfloat16, leave out embeddings that were not trained (`save_embedding_layers=False`), take a smaller rank.
    """
    size = len(subject.files.get(WEIGHTS_NAME, b""))
    if size > LARGE:
        yield Hit(
            message=f"`{WEIGHTS_NAME}` has {size:,} bytes",
            hint="save it in bfloat16, without embeddings that were not trained",
            file=WEIGHTS_NAME,
        )


@finds("LH404", "card-too-large")
def card_too_large(subject: Subject) -> Iterator[Hit]:
    """The model card `README.md` has more than 1 MiB, and is not published so.

    ## How to mend it

    Put pictures beside the card and not into it.
    """
    size = subject.beside.get(CARD_NAME, 0)
    if size > MAX_CARD:
        yield Hit(
            message=f"`{CARD_NAME}` has {size:,} bytes, at most {MAX_CARD:,} are read",
            hint="put pictures beside it, not into it",
            file=CARD_NAME,
        )


@finds("LH405", "base-not-named", severity=Severity.WARNING)
def base_not_named(subject: Subject) -> Iterator[Hit]:
    """Neither config nor manifest says which base model the adapter is for.

    ## Why it matters

    The adapter means nothing without its base, and fits every model of the same shapes. Registries index adapters by
    their base; servers refuse, or take any.

    ## Example

        "base_model_name_or_path": null

    ## How to mend it

    Write the repository of the base into `base_model_name_or_path`, such as `meta-llama/Llama-3.1-8B`.
    """
    if subject.config is not None and not subject.named_base:
        yield Hit(
            message="it does not say which base model it is for",
            hint="write the base's repository into `base_model_name_or_path`",
            file=CONFIG_NAME,
            place="base_model_name_or_path",
        )


@finds("LH406", "local-path", severity=Severity.WARNING)
def local_path(subject: Subject) -> Iterator[Hit]:
    """The base model is a path on the machine where the adapter was trained.

    ## Why it matters

    Nobody else has `/home/me/models/base`, and it says who you are. transformers and PEFT look for it, and if somebody
    has a directory of that name, they load what is in it.

    ## Example

        "base_model_name_or_path": "/mnt/data/llama-ft/checkpoint-1200"

    ## How to mend it

    Write the repository of the base. If the base is a model of your own, publish it, or say in the card where it is.
    """
    named = subject.named_base
    if named and hub_name(named) is None:
        yield Hit(
            message=f"the base model is {printable(named)}, which is no repository",
            hint="write the base's repository into `base_model_name_or_path`",
            file=CONFIG_NAME,
            place="base_model_name_or_path",
        )


@finds("LH407", "pickle-beside", severity=Severity.NOTE)
def pickle_beside(subject: Subject) -> Iterator[Hit]:
    """A pickle lies beside the adapter.

    A pickle can run code when it is read. lora-hub neither reads nor publishes it. `adapter_model.bin` is a warning: it
    is what PEFT falls back to without a message if the safetensors file is missing, and need not be the same adapter.

    ## Example

        out/
          adapter_model.bin
          adapter_model.safetensors
          optimizer.pt

    ## How to mend it

    Remove it. A state of the training belongs into another directory.
    """
    for name in sorted(subject.beside):
        if name.endswith(_PICKLES):
            is_adapter = name == "adapter_model.bin"
            yield Hit(
                message=f"`{name}` is a pickle beside the adapter"
                + (", which PEFT falls back to without a message" if is_adapter else ""),
                hint="remove it: nothing here reads or publishes it",
                file=name,
                severity=Severity.WARNING if is_adapter else Severity.NOTE,
            )


@finds("LH408", "file-not-published", severity=Severity.NOTE)
def file_not_published(subject: Subject) -> Iterator[Hit]:
    """There are files in the directory that `push` does not publish.

    A version is config, weights, manifest, signatures and card. A tokenizer that was extended, or a file with prompts,
    does not come along.

    ## How to mend it

    Say in the card where they are. A tokenizer of a larger vocabulary belongs to a model: merge, and publish that.
    """
    others = [name for name in files_beside(subject.beside) if not name.endswith(_PICKLES)]
    if others:
        yield Hit(
            message=f"{some(others)} {'is' if len(others) == 1 else 'are'} not published",
            hint="say in the card where they are, if they are needed",
            file=others[0],
        )


@finds("LH409", "foreign-library", severity=Severity.WARNING)
def foreign_library(subject: Subject) -> Iterator[Hit]:
    """`auto_mapping` names a library that PEFT would import.

    ## Why it matters

    PEFT imported whatever a downloaded config named, until a list of allowed libraries came in 2026. A config that
    names another one runs that library's code on older releases. lora-hub imports nothing.

    ## Example

        "auto_mapping": {"parent_library": "my_models", "base_model_class": "MyModel"}

    ## How to mend it

    Set `auto_mapping` to null, and `task_type` to what the adapter is for.
    """
    mapping = subject.document.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if isinstance(library, str) and library.partition(".")[0] not in _LIBRARIES:
        yield Hit(
            message=f"`auto_mapping` names the library {printable(library)}, which older releases of PEFT import",
            hint="set `auto_mapping` to null, and `task_type` to what it is for",
            file=CONFIG_NAME,
            place="auto_mapping",
        )


CHECKS = (
    license_missing,
    license_contradicts,
    large,
    card_too_large,
    base_not_named,
    local_path,
    pickle_beside,
    file_not_published,
    foreign_library,
)
