"""PEFT's ``adapter_config.json``: every key is implemented, known to be inert, or refused by name.

The keys and their defaults are those of PEFT 0.21 (peft/tuners/lora/config.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from lora_hub.documents.fields import Fields, canonical_json, parse_json_object, printable
from lora_hub.documents.manifest import CONFIG_NAME, MAX_RANK
from lora_hub.documents.module_names import ModulePattern, is_named, owners_of
from lora_hub.errors import DocumentError, MalformedError

MAX_CONFIG = 4 * 1024 * 1024  # bytes; a list of full module paths of a large model has some 100 kB
MAX_ENTRIES = 4096  # of a list that every module is compared with: layers, heads

# Keys that we implement; `_parse` reads each of them.
IMPLEMENTED = frozenset(
    {
        "peft_type", "task_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora",
        "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "modules_to_save", "lora_dropout",
    }
)  # fmt: skip

# Keys that change nothing at inference, whatever their value.
INERT = frozenset(
    {
        # PEFT writes the class and the library of the base into it; neither is ever imported.
        "auto_mapping",
        "inference_mode", "peft_version", "runtime_config", "qalora_group_size",
        # PEFT overrides it from the class of the module; the shapes of A and B never depend on it.
        "fan_in_fan_out",
        # Parameters of an initialisation; `init_lora_weights` decides whether it changed the base.
        "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        # <= 0.2.0: whether train(False) merges.
        "merge_weights",
    }
)  # fmt: skip

# Keys that change the mathematics or the tensors: accepted if empty (null, false, []), or at one of these values.
REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (),
    "use_qalora": (),
    "lora_bias": (),
    "ensure_weight_tying": (),
    "target_parameters": (),
    "trainable_token_indices": (),
    "layer_replication": (),
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "use_bdlora": (),
    "kasa_config": (),
    "velora_config": (),
    "monteclora_config": (),
    "megatron_config": (),
    "megatron_core": ("megatron.core",),  # a module that PEFT imports, beside a `megatron_config`
    "enable_lora": (),
    # The others (pissa, olora, corda, loftq, lora_ga) change the base: A and B alone are not the delta.
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva", "mica"),
}

T = TypeVar("T")

_EMPTY: tuple[Any, ...] = (None, False, "", [], {})
# PEFT adds both to every sequence or token classifier; a model has one of them at most.
AUTOMATIC_HEADS = frozenset({"classifier", "score"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The part of PEFT's ``LoraConfig`` that says which modules are adapted, and with which rank and scaling."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    lora_dropout: float = 0.0
    rank_pattern: tuple[tuple[ModulePattern, int], ...] = ()
    alpha_pattern: tuple[tuple[ModulePattern, float], ...] = ()
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    accepted_unknown: tuple[str, ...] = ()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return the config that *content* spells.

        Raises:
            DocumentError: Not JSON, or a value of the wrong type; its path is in ``.context``.
            MalformedError: A key changes the mathematics in a way that is not implemented, or is unknown and not empty.
        """
        document = parse_json_object(content, what=f"`{CONFIG_NAME}`", limit=MAX_CONFIG)
        fields = Fields(document)
        if document.get("peft_type") != "LORA":
            fields.fail("peft_type", '"LORA"')
        _refuse_foreign_mathematics(document)
        _refuse_files(document)
        return cls(
            r=fields.integer("r", low=1, high=MAX_RANK) if fields.has("r") else 8,
            lora_alpha=_alpha(fields, "lora_alpha") if fields.has("lora_alpha") else 8,
            use_rslora=fields.read("use_rslora", bool, "true or false") if fields.has("use_rslora") else False,
            lora_dropout=_dropout(fields) if fields.has("lora_dropout") else 0.0,
            rank_pattern=_pattern(fields, "rank_pattern", lambda f, key: f.integer(key, low=1, high=MAX_RANK)),
            alpha_pattern=_pattern(fields, "alpha_pattern", _alpha),
            target_modules=_names(fields, "target_modules"),
            exclude_modules=_names(fields, "exclude_modules"),
            layers_to_transform=_layers(fields),
            layers_pattern=_bounded(fields, "layers_pattern", _as_tuple(_names(fields, "layers_pattern")), 16),
            modules_to_save=_bounded(fields, "modules_to_save", fields.texts("modules_to_save"))
            if fields.has("modules_to_save")
            else (),
            task_type=fields.optional_text("task_type"),
            base_model_name_or_path=fields.optional_text("base_model_name_or_path"),
            revision=fields.optional_text("revision"),
            accepted_unknown=tuple(sorted(document.keys() - IMPLEMENTED - INERT - REQUIRED.keys())),
        )

    def to_bytes(self) -> bytes:
        """Return the bytes of ``adapter_config.json`` as PEFT reads them; same config, same bytes.

        Only keys that PEFT 0.14 knows already, and none of our own.
        """
        return canonical_json(
            {
                "peft_type": "LORA",
                "task_type": self.task_type,
                "base_model_name_or_path": self.base_model_name_or_path,
                "revision": self.revision,
                "inference_mode": True,
                "r": self.r,
                "lora_alpha": self.lora_alpha,
                "use_rslora": self.use_rslora,
                "use_dora": False,
                "lora_bias": False,
                "lora_dropout": self.lora_dropout,
                "bias": "none",
                "fan_in_fan_out": False,
                "init_lora_weights": True,
                "rank_pattern": {pattern.key: r for pattern, r in self.rank_pattern},
                "alpha_pattern": {pattern.key: alpha for pattern, alpha in self.alpha_pattern},
                "target_modules": _sorted(self.target_modules),
                "exclude_modules": _sorted(self.exclude_modules),
                "layers_to_transform": self.layers_to_transform and list(self.layers_to_transform),
                "layers_pattern": list(self.layers_pattern) or None,
                "modules_to_save": sorted(self.modules_to_save) or None,
            }
        )

    def rank_of(self, path: str) -> int:
        """Return r of the module at *path*."""
        return _first_match(self.rank_pattern, path, self.r)

    def alpha_of(self, path: str) -> float:
        """Return alpha of the module at *path*."""
        return _first_match(self.alpha_pattern, path, self.lora_alpha)

    @property
    def target_entries(self) -> tuple[str, ...]:
        """What `target_modules` holds, be it a list or a string."""
        return _as_tuple(self.target_modules)

    def targets(self, paths: Iterable[str]) -> frozenset[str] | None:
        """Return which of *paths* the config targets, or None where only the tensors can tell.

        A string is a regular expression (or ``all-linear``), which is never run. PEFT's own rule is
        ``check_target_module_exists`` in peft/tuners/tuners_utils.py.
        """
        if isinstance(self.target_modules, str | None) or isinstance(self.exclude_modules, str):
            return None
        if not all(word.isidentifier() for word in self.layers_pattern):
            return None
        targeted, excluded = frozenset(self.target_modules), frozenset(self.exclude_modules or ())
        heads = frozenset(self.modules_to_save)
        ends = frozenset(head.rpartition(".")[2] for head in heads)  # of which a path in a head has one
        return frozenset(
            path
            for path in paths
            if is_named(path, targeted)
            and not is_named(path, excluded)
            and (
                ends.isdisjoint(path.split("."))
                or not any(is_named(owner, heads) for owner in (*owners_of(path), path))
            )
            and (path in targeted or self._is_in_layers(path))
        )

    def replaces(self, path: str) -> bool:
        """Whether PEFT takes the module at *path* for one of `modules_to_save`: its path ends so, at any boundary."""
        return path.endswith(self.modules_to_save) if self.modules_to_save else False

    def _is_in_layers(self, path: str) -> bool:
        return not self.layers_to_transform or self._layer_of(path) in self.layers_to_transform

    def _layer_of(self, path: str) -> int | None:
        """Return the number in *path* that PEFT takes for a layer's: the first, or that behind a `layers_pattern`."""
        components = path.split(".")
        for word in self.layers_pattern or (None,):
            for position in range(1 if word else 2, len(components) - 1):
                if components[position].isdecimal() and word in (None, components[position - 1]):
                    return int(components[position])
        return None


def scaling(r: int, alpha: float, *, use_rslora: bool) -> float:
    """Return alpha/r, or alpha/√r with rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732, section 3)."""
    return alpha / math.sqrt(r) if use_rslora else alpha / r


def _layers(fields: Fields) -> tuple[int, ...] | None:
    key = "layers_to_transform"
    if not fields.has(key):
        return None
    if isinstance(fields.values[key], list):
        layers = fields.read(key, list, "an array of layer numbers", lambda v: all(type(i) is int for i in v))
        return _bounded(fields, key, tuple(layers))
    return (fields.integer(key, low=0, high=2**31),)


def _bounded(fields: Fields, key: str, entries: tuple[T, ...], limit: int = MAX_ENTRIES) -> tuple[T, ...]:
    if len(entries) > limit:
        fields.fail(key, f"at most {limit} entries")
    return entries


def _as_tuple(names: tuple[str, ...] | str | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) and names else tuple(names or ())


def _first_match(patterns: tuple[tuple[ModulePattern, T], ...], path: str, default: T) -> T:
    for pattern, value in patterns:
        if pattern.matches(path):
            return value
    return default


def _sorted(names: tuple[str, ...] | str | None) -> list[str] | str | None:
    return sorted(names) if isinstance(names, tuple) else names


def _alpha(fields: Fields, key: str) -> float:
    return fields.number(key)


def _dropout(fields: Fields) -> float:
    return fields.number("lora_dropout", low=0, high=1)


def _pattern(fields: Fields, key: str, read: Any) -> tuple[tuple[ModulePattern, Any], ...]:  # noqa: ANN401
    if not fields.has(key):
        return ()
    inner = fields.object(key)
    return tuple((ModulePattern.parse(name, where=key), read(inner, name)) for name in inner.values)


def _names(fields: Fields, key: str) -> tuple[str, ...] | str | None:
    if not fields.has(key):
        return None
    return fields.text(key) if isinstance(fields.values[key], str) else fields.texts(key)


def _refuse_foreign_mathematics(document: Mapping[str, Any]) -> None:
    for key, accepted in REQUIRED.items():
        if key in document and not _is_one_of(_lower(document[key]), accepted + _EMPTY):
            raise MalformedError(
                f"`{CONFIG_NAME}` sets {printable(key)} to {printable(document[key])}, which lora-hub does not "
                f"implement; accepted: {', '.join(map(printable, accepted)) or 'nothing'}",
                hint="convert the adapter to plain LoRA, for example with `peft.convert_to_lora`",
            )
    for key in sorted(document.keys() - IMPLEMENTED - INERT - REQUIRED.keys()):
        if not _is_one_of(document[key], _EMPTY):
            raise DocumentError(
                f"unknown key with the value {printable(document[key])}: it might change the mathematics",
                context=printable(key).strip('`"'),
                hint="remove the key if it has no effect, or upgrade lora-hub",
            )


def _refuse_files(document: Mapping[str, Any]) -> None:
    """Refuse what is inert to us but names a file that PEFT would unpickle, such as CorDA's ``cache_file``."""
    for key in sorted(INERT & document.keys()):
        inner = document[key] if isinstance(document[key], dict) else {}
        for name in inner:
            if name.endswith("_file") and not _is_one_of(inner[name], _EMPTY):
                raise MalformedError(
                    f"`{CONFIG_NAME}` names a file in {printable(f'{key}.{name}')}: {printable(inner[name])}",
                    hint="remove it: nothing reads it once the adapter is trained",
                )


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _is_one_of(value: object, accepted: tuple[Any, ...]) -> bool:
    """Whether *value* is accepted, where 0 is not False and 1 is not True."""
    return any(type(value) is type(candidate) and value == candidate for candidate in accepted)
