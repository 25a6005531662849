"""LH201 to LH204 and LH211 to LH213: has the base the modules that the adapter changes, in the same shapes."""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.checking.base import Shape, kind_of
from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.fit import Place
from lora_hub.checking.rules.numbers import some
from lora_hub.checking.rules.peft import RENAMED_TYPES
from lora_hub.checking.subject import Subject
from lora_hub.checkpoint.token_layers import is_embedding, is_output
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import CONFIG_NAME, WEIGHTS_NAME
from lora_hub.documents.module_names import names_of

_OTHER_BASE = "name the base that the adapter was trained on"
_WEIGHT = ".weight"
_NEAR = 8  # kinds of missing modules for which a name that is like theirs is sought


def is_tied(subject: Subject) -> bool:
    """Whether the base keeps one tensor for embedding and output; transformers' default is that it does."""
    return subject.base is not None and subject.base.setting("tie_word_embeddings") is not False


@finds("LH201", "module-missing", concerns_base=True)
def module_missing(subject: Subject) -> Iterator[Hit]:
    """The adapter has tensors for a module that the base does not have.

    Names may differ by one prefix for all (`model.` of a backbone that was saved alone), which is found out.

    ## Why it matters

    PEFT drops the tensors. On a base with fewer layers than the adapter's, half of the training is gone, without any
    message. A base of another family has other names, and nothing of the adapter is applied at all.

    ## Example

        the base has no `model.layers.2.self_attn.q_proj.weight`        # it has layers 0 and 1

    If the base is of the adapter's own family and has none of its modules, its files have other names than the model in
    memory: transformers renames them when it loads. That cannot be decided here: a note, and an error under
    `--require-base`.

    ## How to mend it

    Name the base that the adapter was trained on; `lora-hub info` shows it, if it is known.
    """
    fit = subject.fit
    if fit is None:
        return
    # A tied output is not stored; a head that is replaced may be one that the base never had.
    missing = [p for p in fit.missing if p in subject.pairs and not (is_output(p) and is_tied(subject))]
    if missing and len(missing) == len(subject.pairs) and _is_of_one_family(subject):
        yield Hit(
            message=f"the base is of the adapter's own type, and has no weight under the names {some(missing)}: in its "
            "files they have others than in memory",
            hint="apply the adapter to the base once it is loaded; a check of files cannot decide this",
            file=WEIGHTS_NAME,
            place=missing[0],
            severity=Severity.ERROR if subject.requires_base else Severity.NOTE,
        )
        return
    by_kind: dict[str, list[str]] = {}
    for path in missing:
        by_kind.setdefault(kind_of(path), []).append(path)
    for number, paths in enumerate(by_kind.values()):
        near = _near(subject, paths[0]) if number < _NEAR else ""
        yield Hit(
            message=f"the base has no weight for {some(paths)}, with or without a prefix{near}",
            hint=_OTHER_BASE,
            file=WEIGHTS_NAME,
            place=paths[0],
        )


def _is_of_one_family(subject: Subject) -> bool:
    """Whether adapter and base are of one model type, as the manifest or the names say."""
    made_for = subject.manifest.base.model_type if subject.manifest else None
    found = subject.base.model_type if subject.base else None
    return found is not None and (made_for == found or (made_for is None and found in RENAMED_TYPES))


def _near(subject: Subject, path: str) -> str:
    leaf = path.rpartition(".")[2]
    names = subject.base.names if subject.base else ()
    like = min((name for name in names if name.endswith(f".{leaf}{_WEIGHT}")), default=None)
    return f"; it has {printable(like)}" if like else ""


def _compared(subject: Subject) -> Iterator[tuple[Place, list[Shape]]]:
    """Yield where each module lies, and which shapes its weight may have; nothing of packed weights is known."""
    fit = subject.fit
    if fit is None or fit.base.is_quantised:
        return
    for module in subject.modules:
        place = fit.places[module.path]
        if place.shape is not None and place.tensor is not None and place.tensor.endswith(_WEIGHT):
            yield place, fit.expected(module.path, module.out_features, module.in_features)


@finds("LH202", "shape-differs", concerns_base=True)
def shape_differs(subject: Subject) -> Iterator[Hit]:
    """A weight of the base has another shape than the adapter's A and B.

    B A is `[out, in]`, as the weight of a linear module is; those of GPT-2's Conv1D lie `[in, out]`.

    ## Why it matters

    PEFT fails with `size mismatch` for every tensor, and no hint which base would do; with
    `ignore_mismatched_sizes=True` it loads an adapter that does nothing.

    ## Example

    An adapter of a model with hidden size 4096, on its sibling with 5120.

    ## How to mend it

    Name the base that the adapter was trained on. If inputs and outputs are exchanged, the adapter was converted from a
    tool that stores A and B the other way round.
    """
    wrong = [(place, expected) for place, expected in _compared(subject) if place.shape not in expected]
    by_kind: dict[tuple[str, bool], list[tuple[Place, list[Shape]]]] = {}
    for place, expected in wrong:
        by_kind.setdefault((kind_of(place.path), place.is_read), []).append((place, expected))
    for (_, is_read), found in by_kind.items():
        place, expected = found[0]
        shape = f"{list(place.shape or ())}" + ("" if is_read else ", as far as other layers show it")
        yield Hit(
            message=f"the base's weight of {some([p.path for p, _ in found])} has shape {shape}; "
            f"the adapter's is {' or '.join(str(list(shape)) for shape in expected)}",
            hint=_OTHER_BASE,
            file=WEIGHTS_NAME,
            place=place.path,
        )


def _untrained(subject: Subject) -> list[str]:
    """Return what the config targets in the base and the adapter has no tensors for."""
    if subject.fit is None or subject.config is None or not subject.paths:
        return []
    if subject.base is not None and not subject.base.is_whole:
        return []
    linear = [path for path in subject.fit.linear_modules() if not is_embedding(path)]
    targeted = subject.config.targets(linear) or frozenset()
    replaced = {path for path in targeted if any(path == h or path.startswith(f"{h}.") for h in subject.heads)}
    return sorted(targeted - set(subject.paths) - replaced)


@finds("LH203", "target-without-delta", concerns_base=True)
def target_without_delta(subject: Subject) -> Iterator[Hit]:
    """The config targets a module of the base that the adapter has no tensors for.

    ## Why it matters

    The base has more layers than the one that the adapter was trained on, or the file is not whole. PEFT gives these
    modules a fresh adapter without an effect, after one warning; on such a base the outputs are not those that were
    evaluated.

    ## Example

    An adapter of 16 layers, on a base of 32.

    ## How to mend it

    Name the base that the adapter was trained on. If only some layers were trained, the config must say which:
    `layers_to_transform`, or full paths in `target_modules`.
    """
    missing = _untrained(subject)
    if missing:
        yield Hit(
            message=f"the config targets {some(missing)} of the base, and the adapter has no tensors for "
            f"{'it' if len(missing) == 1 else 'them'}",
            hint="name the base that the adapter was trained on, or write `layers_to_transform` into its config",
            file=CONFIG_NAME,
            place=missing[0],
        )


@finds("LH204", "uneven-coverage", severity=Severity.WARNING, concerns_base=True)
def uneven_coverage(subject: Subject) -> Iterator[Hit]:
    """A projection is adapted in some layers and not in others, and the config does not say that this is meant.

    ## Why it matters

    On hybrid models (attention in every eighth layer, Mamba in the others) a list of targets reaches a few per cent of
    the layers only; training goes on as if it reached all.

    ## Example

        q_proj is adapted in 4 of 32 layers

    ## How to mend it

    Look at the names of the base's other layers. If it was meant, `layers_to_transform` or full paths say so, and this
    rule is silent.
    """
    fit, config = subject.fit, subject.config
    if fit is None or config is None or config.layers_to_transform or not fit.base.is_whole or _untrained(subject):
        return
    is_named = isinstance(config.target_modules, tuple) and any(map(_is_path, config.target_modules))
    if is_named or isinstance(config.target_modules, str) or config.exclude_modules:
        return
    for kind, (adapted, there) in fit.layers(subject.paths).items():
        if len(adapted) < len(there):
            yield Hit(
                message=f"{printable(kind)} is adapted in {len(adapted)} of {len(there)} layers",
                hint="look at the names in the other layers; `layers_to_transform` says that it was meant",
                place=adapted[0],
            )


def _is_path(entry: str) -> bool:
    return any(part.isdecimal() for part in entry.split("."))


@finds("LH211", "shape-not-read", severity=Severity.NOTE, concerns_base=True)
def shape_not_read(subject: Subject) -> Iterator[Hit]:
    """The shapes of some weights of the base were not read from their own header.

    Of a base on the Hub at most six requests are made and less than 2 MB are read, whatever its size. Of a base in many
    shards that is not every header: the shape of a weight is then that of the same weight in a layer whose header was
    read, and its name comes from the index.

    ## Why it matters

    Layers differ within some models. What was inferred is almost always right; the note says how much of it there is.

    ## How to mend it

    Nothing needs to be done. Against a directory every header is read: `lora-hub check REF --base ./base`.
    """
    fit = subject.fit
    places = [place for place in fit.places.values() if place.tensor is not None] if fit else []
    inferred = [place for place in places if not place.is_read]
    unknown = [place for place in inferred if place.shape is None]
    if inferred:
        yield Hit(
            message=f"of {len(places)} weights of the base, the headers of {len(places) - len(inferred)} were read; "
            f"{len(inferred) - len(unknown)} have the shape of the same weight in another layer"
            + (f"; the shapes of {len(unknown)} are not known" if unknown else ""),
            hint="check against a directory with the base to read every header",
            severity=Severity.ERROR if unknown and subject.requires_base else Severity.NOTE,
        )


@finds("LH212", "base-is-quantised", severity=Severity.NOTE, concerns_base=True)
def base_is_quantised(subject: Subject) -> Iterator[Hit]:
    """The base is quantised: names are compared, shapes are not.

    The weights of a quantised checkpoint are packed, so their shapes are not those of the modules.

    ## How to mend it

    Nothing needs to be done. Check against the base in 16 bits as well to compare the shapes.
    """
    if subject.base is not None and subject.base.is_quantised:
        yield Hit(
            message=f"`{subject.base.name}` is quantised: its shapes were not compared",
            hint="check against the base in 16 bits as well",
        )


@finds("LH213", "entry-names-nothing", severity=Severity.WARNING, concerns_base=True)
def entry_names_nothing(subject: Subject) -> Iterator[Hit]:
    """An entry of `target_modules` names no module of the base.

    ## Why it matters

    As long as one entry is right, PEFT ignores the others. A typo, or a name of another family, trains less than was
    meant.

    ## Example

    `"target_modules": ["q_proj", "query"]` on a LLaMA, which has no `query`.

    ## How to mend it

    Remove the entry, or write the name that this family has.
    """
    config, fit = subject.config, subject.fit
    if config is None or fit is None or not fit.base.is_whole or not isinstance(config.target_modules, tuple):
        return
    named = {name for path in fit.linear_modules() for name in names_of(path)} | {"lm_head"}
    named |= {name for path in subject.paths for name in names_of(path)}
    for entry in sorted(set(config.target_modules) - named):
        yield Hit(
            message=f"`target_modules` names {printable(entry)}, which is no module of the base",
            hint="remove it, or write the name that the base has",
            file=CONFIG_NAME,
            place="target_modules",
        )


CHECKS = (
    module_missing,
    shape_differs,
    target_without_delta,
    uneven_coverage,
    shape_not_read,
    base_is_quantised,
    entry_names_nothing,
)
