"""What every family of models proves on tiny random models of each type that it claims. To be tested, it is listed.

The proof does not read names: it changes the outputs of a module on the rows that the family calls q, and looks which
of the three arguments of scaled dot-product attention changed.
"""

import contextlib
import functools
import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_hub.architecture import PARTS, Architecture, Projection
from lora_hub.plugin_manager import plugins

# The third-party family of these tests is not installed here; it has to pass like the others.
sys.path.append(str(Path(__file__).with_name("third_party_family")))
FAMILIES = [architecture for plugin in plugins().plugins for architecture in plugin.architectures]
FAMILIES += importlib.import_module("third_party_family").lora_hub_architectures()


def describes_cross_attention(architecture: Architecture) -> bool:
    return any("cross" in projection.module for projection in architecture.projections)


# Each model type; once more with cross-attention, where the family describes that.
CASES = [
    pytest.param(architecture, (model_type, has_cross), id=f"{architecture.name}-{model_type}{'-cross' * has_cross}")
    for architecture in FAMILIES
    for model_type in architecture.model_types
    for has_cross in {False, describes_cross_attention(architecture)}
]

LAYERS = 2
# No two sizes that matter are equal, so that a wrong slice cannot pass by symmetry. A config takes what it knows.
SIZES = {
    "hidden_size": 48,
    "embedding_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 88,
    "ffn_dim": 88,
    "word_embed_proj_dim": 40,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}


@functools.cache
def build(model_type: str, has_cross: bool) -> nn.Module:  # noqa: FBT001 - a case, unpacked
    """Return a tiny random model of *model_type* in evaluation mode."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(model_type)
    options = {"is_decoder": True, "add_cross_attention": True} if has_cross else {}
    for key, value in (SIZES | options).items():
        if hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():  # biases of zero and scales of one would hide mistakes
        nn.init.normal_(parameter, std=0.3)
    return model


class Attention:
    """What goes into and comes out of scaled dot-product attention, call by call."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, Tensor]] = []
        self.outputs: list[Tensor] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """While this is entered, every call is recorded."""
        original = nn.functional.scaled_dot_product_attention

        def record(query: Tensor, key: Tensor, value: Tensor, *args: object, **options: object) -> Tensor:
            output = original(query, key, value, *args, **options)
            self.inputs.append({"q": query.clone(), "k": key.clone(), "v": value.clone()})
            self.outputs.append(output.clone())
            return output

        nn.functional.scaled_dot_product_attention = record
        try:
            yield
        finally:
            nn.functional.scaled_dot_product_attention = original

    def first_change(self, other: "Attention") -> tuple[int, set[str]]:
        """Return the first call whose arguments differ from those of *other*, and which of them do."""
        for call, (one, two) in enumerate(zip(self.inputs, other.inputs, strict=True)):
            if changed := {part for part in one if not torch.equal(one[part], two[part])}:
                return call, changed
        raise AssertionError("nothing changed")


def run(model: nn.Module) -> Attention:
    """Return what attention saw while *model* read five tokens."""
    inputs = {"input_ids": torch.arange(3, 8)[None]}
    if getattr(model.config, "add_cross_attention", False):
        torch.manual_seed(1)
        inputs["encoder_hidden_states"] = torch.randn(1, 7, model.config.hidden_size)
    attention = Attention()
    with torch.no_grad(), attention.recorded():
        model(**inputs)
    return attention


def located(architecture: Architecture, model: nn.Module) -> list[tuple[str, nn.Module, Projection]]:
    """Return the modules of *model* that are projections."""
    found = ((path, module, architecture.projection(path)) for path, module in model.named_modules())
    return [(path, module, projection) for path, module, projection in found if projection is not None]


def rows_of(projection: Projection, part: str, out_features: int, model: nn.Module) -> list[int]:
    return [i for run in projection.rows(part, out_features, model.config.to_dict()) for i in range(*run)]


def seen_by(model: nn.Module, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what goes into *module* and what comes out of it."""
    seen = []
    with module.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output))):
        run(model)
    return seen[0]


def with_noise_on(model: nn.Module, module: nn.Module, rows: list[int]) -> Attention:
    """Return what attention saw with noise on the outputs *rows* of *module*."""

    def disturb(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., rows] += torch.linspace(1, 2, len(rows))
        return output

    with module.register_forward_hook(disturb):
        return run(model)


@pytest.fixture
def model(case) -> nn.Module:
    """A tiny model of the case's type."""
    return build(*case)


def blocks(model: nn.Module) -> int:
    """How many attentions *model* has."""
    return LAYERS * (2 if getattr(model.config, "add_cross_attention", False) else 1)


@pytest.mark.parametrize(("architecture", "case"), CASES)
def test_every_attention_has_all_parts_once(architecture, model):
    """q, k, v and o are found once in every attention of every layer, and no module is taken for one that is none."""
    found = Counter(part for _, _, projection in located(architecture, model) for part in projection.parts)

    assert found == dict.fromkeys(PARTS, blocks(model))


@pytest.mark.parametrize(("architecture", "case"), CASES)
def test_every_projection_is_linear_and_lies_as_it_says(architecture, model):
    """A projection computes W x + b, with W stored `[out, in]`, or `[in, out]` if the family says so."""
    for path, module, projection in located(architecture, model):
        x, y = seen_by(model, module)
        weight = module.weight.T if projection.fan_in_fan_out else module.weight
        bias = getattr(module, "bias", None)
        expected = x @ weight.T + (0 if bias is None else bias)

        assert weight.shape == (y.shape[-1], x.shape[-1]), path
        torch.testing.assert_close(expected, y, msg=path)


@pytest.mark.parametrize(("architecture", "case"), CASES)
def test_the_rows_of_the_parts_are_a_partition(architecture, model):
    """Every output of a projection belongs to exactly one part, and the runs of a part rise without touching."""
    for path, module, projection in located(architecture, model):
        width = seen_by(model, module)[1].shape[-1]
        rows = [row for part in projection.parts for row in rows_of(projection, part, width, model)]
        runs = {part: projection.rows(part, width, model.config.to_dict()) for part in projection.parts}

        assert sorted(rows) == list(range(width)), path
        assert all(one[1] < two[0] for part in runs for one, two in zip(runs[part], runs[part][1:], strict=False)), path


@pytest.mark.parametrize(("architecture", "case"), CASES)
def test_the_rows_of_a_part_feed_that_part(architecture, model):
    """Noise on the rows of q changes the query of one attention and neither its key nor its value; so with k and v."""
    quiet = run(model)
    fed = Counter()
    for path, module, projection in located(architecture, model):
        width = seen_by(model, module)[1].shape[-1]
        for part in set(projection.parts) - {"o"}:
            noisy = with_noise_on(model, module, rows_of(projection, part, width, model))
            call, changed = noisy.first_change(quiet)
            fed[call, part] += 1

            assert changed == {part}, path

    assert fed == dict.fromkeys([(call, part) for call in range(len(quiet.inputs)) for part in "qkv"], 1)


@pytest.mark.parametrize(("architecture", "case"), CASES)
def test_o_reads_what_attention_gives(architecture, model):
    """What goes into o is what one attention gave, head beside head; each attention has its own o."""
    given = [output.transpose(1, 2).flatten(2) for output in run(model).outputs]
    read = [
        [call for call, output in enumerate(given) if torch.equal(output, seen_by(model, module)[0])]
        for _, module, projection in located(architecture, model)
        if "o" in projection.parts
    ]

    assert sorted(read) == [[call] for call in range(blocks(model))]


@pytest.mark.parametrize("architecture", FAMILIES, ids=lambda a: a.name)
def test_a_family_says_something(architecture):
    """A family has a name, model types and projections, whose parts are words that we know."""
    assert architecture.name
    assert architecture.model_types
    assert {part for projection in architecture.projections for part in projection.parts} == set(PARTS)
