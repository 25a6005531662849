"""Layer and projection of a module, read from its path."""

import pytest

from lora_hub.inspecting.layers import Place, by_kind, labels


@pytest.mark.parametrize(
    ("path", "layer", "kind"),
    [
        ("model.layers.12.self_attn.q_proj", 12, "model.layers.*.self_attn.q_proj"),
        ("encoder.block.3.layer.0.SelfAttention.q", 3, "encoder.block.*.layer.*.SelfAttention.q"),
        ("model.layers.1.mlp.experts.7.up_proj", 1, "model.layers.*.mlp.experts.*.up_proj"),
        ("lm_head", None, "lm_head"),
        ("h.99999999999999999999.q", None, "h.99999999999999999999.q"),
        ("h1.q", None, "h1.q"),
    ],
)
def test_the_first_number_is_the_layer(path, layer, kind):
    """The first number is that of the layer; further ones, of experts say, do not make another projection."""
    assert Place.of(path) == (layer, kind)


def test_a_label_is_the_shortest_ending_that_no_other_has():
    """Labels are as short as they can be, and never the same."""
    kinds = ["encoder.block.*.q", "decoder.block.*.q", "decoder.block.*.v", "q"]

    assert labels(kinds) == {
        "encoder.block.*.q": "encoder.block.*.q",
        "decoder.block.*.q": "decoder.block.*.q",
        "decoder.block.*.v": "v",
        "q": "q",
    }


def test_projections_come_in_the_order_of_their_use():
    """q, k, v, o, then the feed-forward, then anything else by name."""
    names = ["zeta", "down_proj", "up_proj", "gate_proj", "o_proj", "v_proj", "k_proj", "q_proj", "alpha"]

    assert list(by_kind({f"layers.0.{name}": None for name in names})) == [*names[1:-1][::-1], "alpha", "zeta"]
