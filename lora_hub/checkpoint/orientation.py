"""Whether the weight of an adapted module lies ``[out, in]`` or, as in GPT-2's Conv1D, ``[in, out]``."""

from __future__ import annotations

from lora_hub.checkpoint.known_model import Known
from lora_hub.documents.adapter_layout import LoraModule
from lora_hub.documents.fields import printable
from lora_hub.errors import CompatibilityError, PluginError
from lora_hub.plugin_manager import plugins


def is_transposed(
    module: LoraModule,
    tensor: str,
    shape: tuple[int, ...],
    *,
    model_type: str | None,
    known: Known,
    who: str,
) -> bool:
    """Return whether the weight of *module*, the checkpoint's *tensor* of *shape*, is stored ``[in, out]``.

    The plugin of *model_type* knows it of its modules; of others the shape decides, or else what transformers knows.

    Raises:
        CompatibilityError: It fits neither way, or nobody knows how it lies.
    """
    straight = (module.out_features, module.in_features)
    by_plugin = transposed_by_plugin(module.path, model_type)
    expected = straight[::-1] if by_plugin else straight
    if shape != expected and (by_plugin is not None or shape != straight[::-1]):
        raise CompatibilityError(
            f"`{module.path}` has a weight of shape {list(shape)} in the base, in `{who}` it is {list(expected)}",
            hint="name the base that the adapter was trained on (`lora-hub info` names it, if it is known)",
        )
    if by_plugin is not None:
        return by_plugin
    if straight[0] != straight[1]:
        return shape != straight
    transposed = model.transposed if (model := known()) is not None else {}
    path = module.path if module.path in transposed else tensor.removesuffix(".weight")
    if path not in transposed:
        raise CompatibilityError(
            f"`{module.path}` is square, and nobody says whether its weight lies [out, in] or [in, out]: no plugin "
            f"describes it for the model type {printable(model_type)}, nor does transformers",
            hint="install transformers, or add a plugin that names this module (README, “Add an architecture”)",
        )
    return transposed[path]


def transposed_by_plugin(path: str, model_type: str | None) -> bool | None:
    """Return what the architecture plugin of *model_type* says of the module at *path*; None if nobody knows it."""
    try:
        projection = plugins().find(model_type).projection(path)
    except PluginError:
        return None
    return None if projection is None else projection.fan_in_fan_out
