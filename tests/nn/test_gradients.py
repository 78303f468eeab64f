"""Gradients at a layer: their values, and that the network is afterwards what it was before."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.nn.gradients import layer_gradients
from histoloc.types import Output

B, K, C, H, W = 2, 3, 4, 5, 6


class Small(nn.Module):
    """Convolution, ReLU in place, mean, linear: the gradient at the convolution is known."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, C, kernel_size=1)
        self.conv = nn.Conv2d(C, C, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(C)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(C, K)
        self.spare = nn.Conv2d(3, 1, kernel_size=1)
        self.after: Callable[[], object] = lambda: None

    def forward(self, image: Tensor) -> Tensor:
        maps = self.act(self.norm(self.conv(self.stem(image))))
        self.after()
        return self.head(maps.mean(dim=(2, 3)))


class Odd(nn.Module):
    """A layer that gives what it is told to."""

    def __init__(self, give: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.give = give

    def forward(self, image: Tensor) -> object:
        return self.give(image)


class Blind(nn.Module):
    """A network whose scores do not depend on its odd layer."""

    def __init__(self, give: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer = Odd(give)

    def forward(self, image: Tensor) -> Tensor:
        self.layer(image)
        return image.mean(dim=(2, 3))


@pytest.fixture
def network() -> Small:
    return Small().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(1))


def hooks(network: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in network.modules() for kind in kinds)


def fail() -> None:
    raise RuntimeError("inside the network")


def by_hand(network: Small, image: Tensor) -> tuple[Tensor, Tensor]:
    """At the normalisation: the activations, and w_c / (hw) where they are positive, as (B, K, C, h, w)."""
    with torch.no_grad():
        activations = network.norm(network.conv(network.stem(image)))
        weights = network.head.weight.view(1, K, C, 1, 1) / (H * W)
        return activations, weights * (activations > 0).float()[:, None]


def test_known_gradients_before_an_in_place_layer(network, image):
    activations, gradients = by_hand(network, image)
    result = layer_gradients(network, network.norm, image)
    assert (activations < 0).any()
    torch.testing.assert_close(result.activations, activations)
    torch.testing.assert_close(result.gradients, gradients)
    torch.testing.assert_close(result.logits, network(image).detach())


def test_chosen_classes(network, image):
    every = layer_gradients(network, network.norm, image).gradients
    one = layer_gradients(network, network.norm, image, torch.tensor([2, 0])).gradients
    assert torch.equal(one, torch.stack([every[0, [2]], every[1, [0]]]))
    two = layer_gradients(network, network.norm, image, torch.tensor([[2, 1], [0, 2]])).gradients
    assert torch.equal(two, torch.stack([every[0, [2, 1]], every[1, [0, 2]]]))


def test_the_batch_does_not_matter(network, image):
    whole = layer_gradients(network, network.conv, image)
    alone = layer_gradients(network, network.conv, image[1:])
    torch.testing.assert_close(whole.gradients[1:], alone.gradients)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(network, image, quiet):
    expected = layer_gradients(network, network.norm, image)
    with quiet():
        own = image * 1  # in inference mode a tensor that autograd refuses
        result = layer_gradients(network, network.norm, own)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (quiet is torch.inference_mode)
    for got, wanted in zip(result, expected, strict=True):
        assert torch.equal(got, wanted)
        assert not got.is_inference()


def test_frozen_parameters(network, image):
    expected = layer_gradients(network, network.norm, image)
    result = layer_gradients(network.requires_grad_(False), network.norm, image)
    assert torch.equal(result.gradients, expected.gradients)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_encoder_that_runs_without_gradients(network, image):
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, image: Tensor) -> Tensor:
            with torch.no_grad():
                maps = self.inner.norm(self.inner.conv(self.inner.stem(image)))
            return self.inner.head(maps.relu().mean(dim=(2, 3)))

    with torch.no_grad():
        result = layer_gradients(Frozen(), network.norm, image)
    torch.testing.assert_close(result.gradients, by_hand(network, image)[1])


@pytest.mark.parametrize("end", ["success", "exception in the network", "exception in the hook"])
def test_nothing_is_left_behind(network, image, end):
    network.train()
    network.norm.eval()
    network.stem.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    if end == "success":
        layer_gradients(network, network.norm, image)
    elif end == "exception in the network":
        network.after = fail
        with pytest.raises(RuntimeError, match="inside the network"):
            layer_gradients(network, network.norm, image)
    else:
        with pytest.raises(InputError, match="not a map"):
            layer_gradients(network, network.head, image)
    assert hooks(network) == 0
    assert [module.training for module in network.modules()] == modes
    assert modes.count(True) == len(modes) - 1
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == {"stem.weight", "stem.bias"}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.is_grad_enabled()


def test_runs_in_eval_mode(network, image):
    expected = layer_gradients(network, network.norm, image)
    network.norm.train()  # would take the batch's statistics
    assert torch.equal(layer_gradients(network, network.norm, image).activations, expected.activations)


def test_earlier_gradients_survive(network, image):
    network(image).sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    layer_gradients(network, network.norm, image)
    for parameter, grad in zip(network.parameters(), before, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or (parameter.grad is not None and torch.equal(parameter.grad, grad))


def test_no_graph_before_the_layer(network, image):
    seen: list[bool] = []
    handle = network.conv.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    layer_gradients(network, network.norm, image)
    handle.remove()
    assert seen == [False]


def test_no_memory_is_kept(network, image):
    def tensors() -> int:
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    result = layer_gradients(network, network.norm, image)
    assert not any(value.requires_grad or value.grad_fn for value in result)
    gc.collect()
    before = tensors()
    gc.disable()  # what only the collector can free would show
    try:
        for _ in range(50):
            result = layer_gradients(network, network.norm, image)
        assert tensors() <= before
    finally:
        gc.enable()


def test_callables_and_outputs(network, image):
    expected = layer_gradients(network, network.norm, image)
    result = layer_gradients(lambda x: Output(network(x), x[:, :1], {}), network.norm, image)
    assert torch.equal(result.logits, expected.logits)
    torch.testing.assert_close(result.gradients, expected.gradients)


def test_low_precision(network, image):
    with torch.autocast("cpu", torch.bfloat16):
        result = layer_gradients(network, network.conv, image)
    assert result.logits.dtype == result.activations.dtype == result.gradients.dtype == torch.float32
    expected = layer_gradients(network.double(), network.conv, image.double())
    assert expected.gradients.dtype == torch.float64
    torch.testing.assert_close(result.activations.double(), expected.activations, rtol=0.03, atol=0.02)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda x: x.flatten(2).transpose(1, 2), r"tensor of shape \(2, 30, 3\)"),
        (lambda x: (x, x), "a tuple"),
        (lambda x: x.long(), "not a map"),
    ],
)
def test_layers_without_a_map(image, give, message):
    network = Blind(give)
    with pytest.raises(InputError, match=message):
        layer_gradients(network, network.layer, image)


def test_layers_that_cannot_be_used(network, image):
    with pytest.raises(InputError, match="runs 0 times"):
        layer_gradients(network, network.spare, image)
    with pytest.raises(InputError, match="runs 2 times"):
        layer_gradients(lambda x: network(x) + network(x), network.norm, image)
    blind = Blind(lambda x: x * 2)
    with pytest.raises(InputError, match="do not depend on the layer Odd"):
        layer_gradients(blind, blind.layer, image)
    with pytest.raises(InputError, match="do not depend on the layer Odd"):  # scores with another graph
        layer_gradients(lambda x: blind(x) + x.new_ones((), requires_grad=True), blind.layer, image)
