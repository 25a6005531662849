"""Adapters that must be accepted: older and newer documents, other trainers, whatever is unusual and sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from adapter_files import Tensor, peft_config, safetensors, to_json
from vectors.making.case import Case, accepted
from vectors.making.published import (
    MANIFEST_NAME,
    SLICES,
    Change,
    Document,
    Q,
    V,
    adapter,
    fused_adapter,
    fused_version,
    pair,
    signed,
    tensor,
    version,
)

FILES = version()
SIGNED = signed(FILES)


def _has_another_manifest() -> Iterator[tuple[str, Case]]:
    def of(change: Change) -> Case:
        return accepted(signed(version(manifest=change)))

    yield "manifest_is_compact", accepted(signed({**FILES, MANIFEST_NAME: _compact(FILES[MANIFEST_NAME])}))
    yield (
        "manifest_has_newer_keys",
        of(lambda d: d.update(ancestry={"parents": []}, description="\x1b[2J\u202e", expires=None)),
    )
    yield "manifest_knows_no_base", of(lambda d: d.update(base={}))
    yield "manifest_has_every_key", of(_say_everything)
    strings = version(
        adapter(base_model_name_or_path=_CANARY, revision=_CANARY, task_type=_CANARY), manifest=_say_canary
    )
    yield (
        "strings_would_move_the_cursor",
        accepted(signed(strings, statement=lambda d: d["subject"][0].update(name=_CANARY))),
    )


def _compact(content: bytes) -> bytes:
    return json.dumps(json.loads(content), separators=(",", ":")).encode()


_CANARY = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e\x7fx"


def _say_canary(document: Document) -> None:
    document["license"] = document["base"]["repo"] = _CANARY
    document["base"] |= {"revision": _CANARY, "model_type": _CANARY}
    document["lora"]["targets"] = [_CANARY]


def _say_everything(document: Document) -> None:
    document["license"] = "apache-2.0"
    document["base"] |= {"revision": "main", "model_type": "tiny"}


def _has_other_tensors() -> Iterator[tuple[str, Case]]:
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    for dtype, word in names.items():
        yield f"dtype_is_{word}", accepted(signed(version(adapter(dtype=dtype), lora={"dtype": word})))
    mixed = adapter()
    mixed.tensors |= {key: value for key, value in pair(V, dtype="BF16").items() if key.endswith("B.weight")}
    yield "dtypes_are_two", accepted(signed(version(mixed, lora={"dtype": "bfloat16+float32"})))
    yield "metadata_is_missing", accepted(signed(version(weights=safetensors(adapter().tensors))))
    yield "header_is_not_aligned", accepted(signed(version(weights=_unaligned(adapter().tensors))))
    yield "tensors_are_in_another_order", accepted(signed(version(_renamed(lambda k: k, reverse=True))))
    yield "names_have_no_prefix", accepted(signed(version(_renamed(lambda k: k.removeprefix("base_model.model.")))))
    compiled = _renamed(lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."))
    yield "names_are_of_a_compiled_model", accepted(signed(version(compiled)))
    default = _renamed(lambda k: k.replace(".weight", ".default.weight"))
    yield "names_hold_the_name_of_the_adapter", accepted(signed(version(default)))
    yield "module_is_fused_and_sliced", accepted(signed(fused_version(SLICES)))
    whole = {"r": 2, "alpha": 4, "targets": ["c_attn"], "parameters": 32}
    yield "module_is_fused_and_whole", accepted(signed(version(fused_adapter(), lora=whole)))
    head = adapter(modules_to_save=["classifier"])
    head.tensors |= {f"base_model.model.classifier.{n}": t for n, t in (("weight", tensor(3, 4)), ("bias", tensor(3)))}
    yield "module_is_replaced", accepted(signed(version(head, lora={"parameters": 29})))
    extra = {
        "README.md": b"# \x1b[2J\n",
        "adapter_model.bin": b"cbuiltins\nopen\n(Vowned\nVw\ntR.",
        "optimizer.pt": b"PK\x03\x04",
    }
    yield "other_files_lie_there", accepted({**SIGNED, **extra})


def _renamed(rename: Any, *, reverse: bool = False) -> Any:
    made = adapter()
    made.tensors = {rename(key): made.tensors[key] for key in sorted(made.tensors, reverse=reverse)}
    return made


def _unaligned(tensors: dict[str, Tensor]) -> bytes:
    file = safetensors(tensors)
    end = 8 + int.from_bytes(file[:8], "little")
    text = file[8:end].rstrip() + b"   "
    text += b" " * (len(text) % 2 == 0)
    return len(text).to_bytes(8, "little") + text + file[end:]


def _has_another_config() -> Iterator[tuple[str, Case]]:
    def of(**config: Any) -> Case:
        return accepted(signed(version(adapter(**config))))

    ranks = adapter(rank_pattern={"v_proj": 2}, alpha_pattern={r"^layers\.0\.v_proj$": 8})
    ranks.tensors |= pair(V, 2)
    # Of two ranks, each of one module, the manifest says the smaller one; so it does of two alphas.
    yield "ranks_differ", accepted(signed(version(ranks, lora={"parameters": 20})))
    yield "scaling_is_rank_stabilised", of(use_rslora=True)
    yield "targets_are_a_regular_expression", of(target_modules=r".*\.(q|v)_proj")
    yield "targets_are_all_linear", of(target_modules="all-linear")
    yield "targets_are_full_paths", of(target_modules=[Q, V])
    yield "layers_are_chosen", of(layers_to_transform=[0], layers_pattern="layers")
    library = {"parent_library": "antigravity", "base_model_class": "Fly"}
    yield "library_is_named_and_not_imported", of(auto_mapping=library)
    yield "keys_are_unknown_and_empty", of(next_year=None, and_then=False, lists=[], objects={})
    yield "config_is_that_of_peft_0_3", accepted(signed(version(config=_old_config())))
    yield "config_is_that_of_peft_0_21", of(**_NEW_KEYS)
    compact = json.dumps(peft_config(r=1, lora_alpha=2), separators=(",", ":")).encode()
    yield "config_is_compact", accepted(signed(version(config=compact)))
    yield "alpha_is_a_fraction", accepted(signed(version(adapter(lora_alpha=2.5), lora={"alpha": 2.5})))
    yield "alpha_is_negative", accepted(signed(version(adapter(lora_alpha=-2), lora={"alpha": -2})))


def _old_config() -> bytes:
    keys = ("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout")
    known = peft_config(r=1, lora_alpha=2)
    old = {name: known[name] for name in (*keys, "bias", "fan_in_fan_out", "target_modules", "modules_to_save")}
    return to_json({**old, "enable_lora": None, "merge_weights": False, "init_lora_weights": True})


_NEW_KEYS: dict[str, Any] = {
    "alora_invocation_tokens": None, "arrow_config": None, "auto_mapping": None, "corda_config": None,
    "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None, "layer_replication": None,
    "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_bias": False,
    "megatron_config": None, "megatron_core": "megatron.core", "peft_version": "0.21.2", "qalora_group_size": 16,
    "target_parameters": None, "trainable_token_indices": None, "use_qalora": False,
}  # fmt: skip


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _has_another_manifest()
    yield from _has_other_tensors()
    yield from _has_another_config()
