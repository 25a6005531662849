"""What can be wrong with ``adapter_config.json``; manifest and signature are right for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapter_files import peft_config, to_json
from vectors.making.case import Case, malformed, refused
from vectors.making.published import CONFIG_NAME, Files, signed, version

CONFIG = to_json(peft_config(r=1, lora_alpha=2))
NOT_JSON = "not valid JSON"


def raw(content: bytes) -> Files:
    """Return the version with *content* for a config."""
    return signed(version(config=content))


def having(**changes: Any) -> Files:
    """Return the version with *changes* in its config."""
    return raw(to_json(peft_config(**{"r": 1, "lora_alpha": 2, **changes})))


def replaced(old: bytes, new: bytes) -> Files:
    """Return the version with one text of its config replaced by another."""
    assert CONFIG.count(old) == 1
    return raw(CONFIG.replace(old, new))


def _is_no_json() -> Iterator[tuple[str, Case]]:
    yield "json_is_empty", refused(8, NOT_JSON, raw(b""))
    yield "json_is_cut_off", refused(8, NOT_JSON, raw(CONFIG[:-2]))
    yield "json_is_an_array", refused(8, "must be a JSON object", raw(b"[" + CONFIG + b"]"))
    yield "json_has_a_comment", refused(8, NOT_JSON, raw(b"// PEFT\n" + CONFIG))
    yield "json_is_not_utf8", refused(8, NOT_JSON, replaced(b"org/base", b"org/b\xe4se"))
    yield "json_is_utf16", refused(8, NOT_JSON, raw(CONFIG.decode().encode("utf-16")))
    yield "json_has_a_key_twice", refused(8, "stands twice", replaced(b'"r": 1', b'"r": 1, "r": 2'))
    yield "json_has_half_a_surrogate_pair", refused(8, NOT_JSON, replaced(b"org/base", b"org/\\udfff"))
    deep = b'"revision": ' + b"[" * 20 + b"]" * 20
    yield "json_is_too_deep", refused(8, "nested deeper", replaced(b'"revision": null', deep))
    size = 4 * 1024 * 1024 + 1
    padded = raw(CONFIG + b" " * (size - len(CONFIG)))
    yield (
        "json_is_too_large",
        malformed("at most 4194304", {**padded, CONFIG_NAME: CONFIG}, special={"pad": {CONFIG_NAME: size}}),
    )


def _has_a_bad_number() -> Iterator[tuple[str, Case]]:
    yield "r_is_zero", refused(8, "`r`", having(r=0))
    yield "r_is_negative", refused(8, "`r`", having(r=-1))
    yield "r_is_true", refused(8, "`r`", having(r=True))
    yield "r_is_a_fraction", refused(8, "`r`", having(r=1.5))
    yield "r_is_a_string", refused(8, "`r`", having(r="1"))
    yield "r_is_a_million", refused(8, "`r`", having(r=1_000_000))
    yield "r_has_5000_digits", refused(8, "5000 digits", replaced(b'"r": 1', b'"r": ' + b"9" * 5000))
    alpha = b'"lora_alpha": 2'
    yield "alpha_is_nan", refused(8, "NaN", replaced(alpha, b'"lora_alpha": NaN'))
    yield "alpha_is_infinite", refused(8, "too large", replaced(alpha, b'"lora_alpha": 1e999'))
    yield "alpha_is_minus_infinity", refused(8, "-Infinity", replaced(alpha, b'"lora_alpha": -Infinity'))
    yield "alpha_is_a_string", refused(8, "`lora_alpha`", having(lora_alpha="2"))
    yield "alpha_has_400_digits", refused(8, "`lora_alpha`", having(lora_alpha=10**400))
    yield "scaling_is_absurd", malformed("is scaled by", having(lora_alpha=1e20))
    yield "rank_in_a_pattern_is_zero", refused(8, "rank_pattern.q_proj", having(rank_pattern={"q_proj": 0}))
    yield "rank_in_a_pattern_is_another", malformed("expected [4, in]", having(rank_pattern={"q_proj": 4}))
    yield "dropout_is_above_one", refused(8, "lora_dropout", having(lora_dropout=1.5))


def _runs_something() -> Iterator[tuple[str, Case]]:
    regex = "is a regular expression"
    yield "rank_pattern_is_a_regular_expression", malformed(regex, having(rank_pattern={"(a+)+$": 1}))
    yield "alpha_pattern_is_a_regular_expression", malformed(regex, having(alpha_pattern={"^(.*)*x": 1}))
    yield "pattern_has_an_escape_sequence", malformed("\\u001b", having(rank_pattern={"\x1b[2J\u202e": 1}))
    megatron = {"tensor_model_parallel_size": 1}
    yield "megatron_config_is_set", malformed("megatron_config", having(megatron_config=megatron))
    yield "megatron_core_is_a_module_to_import", malformed("megatron_core", having(megatron_core="os"))
    files = {"cache_file": "/tmp/cache.pt", "covariance_file": None}
    yield "corda_names_a_file_to_unpickle", malformed("names a file", having(corda_config=files))
    yield "layers_are_replicated", malformed("layer_replication", having(layer_replication=[[0, 1_000_000]]))
    unknown = refused(8, "might change the mathematics", having(trust_remote_code=True))
    yield "trust_remote_code_is_set", unknown


def _is_other_mathematics() -> Iterator[tuple[str, Case]]:
    yield "peft_type_is_missing", refused(8, "peft_type", replaced(b'"peft_type": "LORA",', b""))
    yield "peft_type_is_ia3", refused(8, "peft_type", having(peft_type="IA3"))
    yield "peft_type_has_an_escape_sequence", refused(8, "\\u001b", having(peft_type="\x1b[2JLORA"))
    yield "use_dora_is_true", malformed("use_dora", having(use_dora=True))
    yield "bias_is_all", malformed("bias", having(bias="all"))
    yield "lora_bias_is_true", malformed("lora_bias", having(lora_bias=True))
    yield "initialisation_changes_the_base", malformed("pissa", having(init_lora_weights="pissa"))
    yield "parameters_are_targets", malformed("target_parameters", having(target_parameters=["experts.w1"]))
    yield "tokens_are_trained", malformed("trainable_token_indices", having(trainable_token_indices=[0, 1]))
    yield "key_is_unknown", refused(8, "might change the mathematics", having(lora_gain=2.0))
    yield "key_has_an_escape_sequence", refused(8, "\\u001b[2J", having(**{"\x1b[2J\x07\u202e": 1}))
    yield "target_modules_hold_a_number", refused(8, "target_modules", having(target_modules=["q_proj", 1]))
    yield "target_modules_are_an_object", refused(8, "target_modules", having(target_modules={"q_proj": True}))
    yield (
        "target_without_tensors",
        malformed("has no tensor for it", having(target_modules=["q_proj", "v_proj", "o_proj"])),
    )
    yield "module_is_saved_without_tensors", malformed("has no tensor for it", having(modules_to_save=["lm_head"]))
    yield "modules_to_save_is_a_string", refused(8, "modules_to_save", having(modules_to_save="lm_head"))
    yield "layers_are_5000", refused(8, "layers_to_transform", having(layers_to_transform=[0] * 5000))
    yield "base_is_a_list", refused(8, "base_model_name_or_path", having(base_model_name_or_path=["org/base"]))


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _is_no_json()
    yield from _has_a_bad_number()
    yield from _runs_something()
    yield from _is_other_mathematics()
