import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import answer, build, noise
from torch import Tensor, nn

from histoloc.maps import normalise_per_image
from histoloc.methods.deepmil import Attention, DeepMil, over_positions
from histoloc.types import Output


class AsImage(nn.Module):
    """A backbone whose features are the image itself."""

    channels, stride = 3, 1

    def forward(self, image: Tensor) -> Tensor:
        return image


def deepmil(**options: Any) -> DeepMil:
    """Deep MIL on three-channel features that the test chooses."""
    method = build("deepmil", **options)
    assert isinstance(method, DeepMil)
    torch.manual_seed(0)
    maps = method.attention.energy.out_channels
    small = Attention(3, maps, width=5, gated=method.attention.gate is not None)
    method.backbone, method.attention, method.head = AsImage(), small, nn.Conv2d(3, 2, 1)  # type: ignore[assignment]
    return method.eval()


def set_to(layer: nn.Conv2d, weight: list[list[float]], bias: list[float] | None = None) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight)[:, :, None, None])
        if bias is not None:
            assert layer.bias is not None
            layer.bias.copy_(torch.tensor(bias))


# Two positions with features (0, 1) and (1, -1); two hidden units.
FEATURES = torch.tensor([[0.0, 1.0], [1.0, -1.0]]).view(1, 2, 1, 2)
V, V_BIAS, W = [[1.0, 0.0], [0.5, 2.0]], [0.0, -0.5], [[2.0, -1.0]]
U, U_BIAS = [[0.0, 1.0], [1.0, 1.0]], [0.0, 1.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("gated", [False, True])
def test_attention_by_hand(gated):
    attention = Attention(2, 1, width=2, gated=gated)
    set_to(attention.hidden, V, V_BIAS)
    set_to(attention.energy, W)
    # V h + bias: (0, 1.5) at the first position, (1, -2) at the second; U h + bias: (1, 2) and (-1, 1).
    gates = [(1.0, 1.0), (1.0, 1.0)]
    if attention.gate is not None:
        set_to(attention.gate, U, U_BIAS)
        gates = [(sigmoid(1), sigmoid(2)), (sigmoid(-1), sigmoid(1))]
    first = 2 * math.tanh(0) * gates[0][0] - math.tanh(1.5) * gates[0][1]
    second = 2 * math.tanh(1) * gates[1][0] - math.tanh(-2) * gates[1][1]
    got = over_positions(attention(FEATURES))
    expected = math.exp(first) / (math.exp(first) + math.exp(second))
    assert got.flatten().tolist() == pytest.approx([expected, 1 - expected], rel=1e-5)


def test_attention_has_no_parameter_that_the_softmax_cancels():
    assert {name for name, _ in Attention(2, 1, width=2, gated=True).named_parameters()} == {
        f"{layer}.{kind}" for layer in ("hidden", "gate", "energy") for kind in ("weight", "bias")
    } - {"energy.bias"}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("attention", ["class", "shared"])
@settings(max_examples=15, deadline=None)
@given(size=st.tuples(st.integers(1, 7), st.integers(1, 7)), scale=st.floats(1e-3, 1e4), seed=st.integers(0, 99))
def test_attention_sums_to_one(attention, gated, size, scale, seed):
    features = scale * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    maps = over_positions(deepmil(attention=attention, gated=gated)(features).evidence)
    assert maps.shape == (2, 2 if attention == "class" else 1, *size)
    assert maps.min() >= 0
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(maps.shape[:2]))


@pytest.mark.parametrize("attention", ["class", "shared"])
def test_score_is_a_linear_classifier_on_the_weighted_mean(attention):
    method, features = deepmil(attention=attention), noise(2, 4, 5)
    out = method(features)
    weight, bias = method.head.weight[:, :, 0, 0], method.head.bias
    assert bias is not None
    attentions = over_positions(method.attention(features))
    for image in range(2):
        for k in range(2):
            a = attentions[image, k if attention == "class" else 0]
            z = (a * features[image]).sum(dim=(1, 2))
            torch.testing.assert_close(out.logits[image, k], weight[k] @ z + bias[k])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("attention", ["class", "shared"])
def test_order_of_positions_does_not_matter(attention, gated):
    method, features = deepmil(attention=attention, gated=gated), noise(2, 6, 7)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(3))
    moved = features.flatten(2)[..., order].view_as(features)
    out, other = method(features), method(moved)
    torch.testing.assert_close(other.logits, out.logits)
    torch.testing.assert_close(other.evidence.flatten(2), out.evidence.flatten(2)[..., order])


@pytest.mark.parametrize(("attention", "maps"), [("class", 2), ("shared", 1)])
def test_evidence_is_the_attention_before_its_softmax(attention, maps):
    method, features = deepmil(attention=attention), noise(2, 6, 7)
    evidence = method(features).evidence
    assert evidence.shape == (2, maps, 6, 7)
    assert torch.equal(evidence, method.attention(features))
    assert maps == 1 or not torch.allclose(evidence[:, 0], evidence[:, 1])


def test_equal_class_attentions_are_a_shared_one():
    each, shared, features = deepmil(), deepmil(attention="shared"), noise(2, 6, 7)
    set_to(shared.attention.energy, [[1.0, -2.0, 0.5, 0.0, 1.0]])
    set_to(each.attention.energy, [[1.0, -2.0, 0.5, 0.0, 1.0]] * 2)
    for layer in ("attention.hidden", "head"):
        each.get_submodule(layer).load_state_dict(shared.get_submodule(layer).state_dict())
    torch.testing.assert_close(each(features).logits, shared(features).logits)
    torch.testing.assert_close(answer(each, features)[1], answer(shared, features)[1])


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (32, 48)])
def test_uniform_attention_is_one_half_everywhere(size):
    _, roi = answer(deepmil(), torch.full((2, 3, *size), 0.7))
    torch.testing.assert_close(roi, torch.full((2, 1, *size), 0.5))


def test_the_rule_per_image_by_hand():
    # Attention 1/8, 2/8, 5/8 over three positions: u = aN / (1 + aN) = 3/11, 6/14, 15/23.
    method, energy = deepmil(), torch.tensor([1.0, 2.0, 5.0]).log().view(1, 1, 1, 3)
    for shift in (0.0, -80.0, 80.0):  # which the softmax cancels
        u = method.image_map(Output(torch.zeros(1, 2), energy, {}), energy + shift, torch.zeros(1, dtype=torch.int64))
        assert u.flatten().tolist() == pytest.approx([3 / 11, 6 / 14, 15 / 23], rel=1e-4)


@pytest.mark.parametrize("attention", ["class", "shared"])
def test_one_half_is_where_attention_exceeds_the_uniform_one(attention):
    method, features = deepmil(attention=attention), 3 * noise(2, 6, 7)
    probabilities, roi = answer(method, features)
    each = over_positions(method.attention(features))
    a = each[[0, 1], probabilities.argmax(dim=1) if attention == "class" else 0][:, None]
    assert torch.equal(roi >= 0.5, a >= 1 / 42)
    assert torch.equal(roi >= 1 / 3, a >= 1 / 84)  # the older code's cut for two classes
    torch.testing.assert_close(roi / (1 - roi), 42 * a)
    assert 0 < (roi >= 0.5).float().mean() < 1


def test_minmax_normalisation_stretches_the_attention():
    method, features = deepmil(normalisation="minmax", attention="shared"), noise(2, 6, 7)
    _, roi = answer(method, features)
    torch.testing.assert_close(roi, normalise_per_image(over_positions(method.attention(features))))
    assert roi.amin(dim=(1, 2, 3)).tolist() == [0, 0]
    assert roi.amax(dim=(1, 2, 3)).tolist() == [1, 1]


@pytest.mark.parametrize("gated", [False, True])
def test_attention_has_the_right_gradient(gated):
    torch.manual_seed(0)
    attention = Attention(3, 2, width=4, gated=gated).double()
    features = noise(2, 2, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: over_positions(attention(x)), features)


@pytest.mark.parametrize("options", [{"gated": True}, {"attention": "shared"}, {"gated": True, "attention": "shared"}])
def test_every_parameter_learns(options):
    method = deepmil(**options).train()
    nn.functional.cross_entropy(method(noise(2, 4, 5)).logits, torch.tensor([0, 1])).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_width_is_the_number_of_hidden_units():
    method = build("deepmil", width=7, gated=True)
    assert isinstance(method, DeepMil)
    assert method.attention.gate is not None
    assert method.attention.hidden.out_channels == method.attention.gate.out_channels == 7
    assert build("deepmil").get_parameter("attention.energy.weight").shape == (2, 128, 1, 1)
