"""The base model of a search or a replay, by transformers. Beside the demo, little else knows transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_hub.errors import CompatibilityError, LoraHubError, NotFoundError
from lora_hub.extras import needs_torch
from lora_hub.searching.tokens import Tokenizer

Heads = Mapping[str, Mapping[str, Tensor]]
Kind = Literal["causal", "classifier", "encoder"]  # what is made of the last layer: a language model, classes, nothing


def load_base(name: str, *, is_classifier: bool, heads: Heads) -> tuple[nn.Module, Tokenizer]:
    """Return the model *name* on the GPU if there is one, and its tokenizer. No code of a repository is run.

    Args:
        name: A directory, as a path that begins with ``.`` or ``/`` or that exists; else a repository on the Hub.
        is_classifier: Whether it is to classify sequences; else it is a causal language model.
        heads: The modules that the adapters replace, by path: a base without a classifier gets its shape from there.

    Raises:
        NotFoundError: There is no such model, or it has no tokenizer or no safetensors.
        CompatibilityError: It is of another kind, or parts of it would be random.
    """
    model = load_model(name, kind="classifier" if is_classifier else "causal", heads=heads)
    with _quietly(), _in_our_words(name):
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return model, tokenizer


def load_model(name: str, *, kind: Kind, heads: Heads, revision: str | None = None) -> nn.Module:
    """Return the model *name* on the GPU if there is one, in evaluation mode, as `load_base` loads it.

    Args:
        name: A directory or a repository on the Hub.
        kind: What it is to be.
        heads: The modules that the adapters replace, by path.
        revision: A branch, a tag or a commit of the repository.
    """
    with needs_torch("loading a base model"):
        import transformers
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise NotFoundError(f"there is no directory `{name}`", hint="check the path of the base")
    with _quietly(), _in_our_words(name):
        at = {} if revision is None else {"revision": revision}
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **at)
        auto = _auto_class(transformers, config, name, kind)
        shape = _labels_of(heads) if kind == "classifier" and not _is_kind(config, "ForSequenceClassification") else {}
        model, loaded = auto.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **shape, **at
        )
    missing = [key for key in loaded["missing_keys"] if not (kind == "encoder" and key.startswith("pooler."))]
    _check_whole(name, missing, heads)  # the last layer does not depend on what pools it
    if torch.cuda.is_available():
        model = model.cuda()
    return model.eval()  # type: ignore[no-any-return] # of transformers, which has no types


def _auto_class(transformers: Any, config: Any, name: str, kind: Kind) -> Any:  # noqa: ANN401
    """Return the class that loads the model; what the config calls it decides whether it is one for the examples."""
    known = ", ".join(config.architectures or ())
    if kind == "classifier":
        return transformers.AutoModelForSequenceClassification
    if kind == "encoder":
        return transformers.AutoModel
    if known and not (_is_kind(config, "ForCausalLM") or _is_kind(config, "LMHeadModel")):
        raise CompatibilityError(
            f"`{name}` is a {known}, expected a causal language model",
            hint="name a causal language model; the examples of a classifier are labelled texts",
        )
    return transformers.AutoModelForCausalLM


def _is_kind(config: Any, suffix: str) -> bool:  # noqa: ANN401
    return any(name.endswith(suffix) for name in config.architectures or ())


def _labels_of(heads: Heads) -> dict[str, int]:
    """Return how many classes the classifier among *heads* has: the last layer of it is the narrowest."""
    widths = [t.shape[0] for head in heads.values() for t in head.values() if t.ndim == 2]  # noqa: PLR2004
    return {"num_labels": min(widths)} if widths else {}


def _check_whole(name: str, missing: Iterable[str], heads: Heads) -> None:
    """What the checkpoint lacks is random in the model, unless every mixture replaces it."""
    random = sorted(key for key in missing if not any(key.startswith(f"{path}.") for path in heads))
    if random:
        raise CompatibilityError(
            f"`{name}` has no `{random[0]}` ({len(random)} tensors are missing), and no adapter brings it",
            hint="name the base with its head, as the adapters were trained on it",
        )


@contextlib.contextmanager
def _in_our_words(name: str) -> Iterator[None]:
    """Transformers raises `OSError` for what is not there and `ValueError` for what it does not know."""
    try:
        yield
    except LoraHubError:
        raise
    except OSError as error:
        raise NotFoundError(
            f"`{name}` cannot be loaded: {_first_line(error)}",
            hint="name a directory that `save_pretrained` wrote, with its tokenizer and safetensors, or a model on "
            "the Hub",
        ) from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise CompatibilityError(
            f"transformers cannot load `{name}`: {_first_line(error)}",
            hint="code that comes with a model is never run; load it yourself and call `lora_hub.search_weights`",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Show no progress bars of transformers, and no advice to train a head that the adapters bring."""
    from transformers.utils import logging

    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()
