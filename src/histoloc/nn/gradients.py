"""Gradients of class scores with respect to a layer's activations: what the Grad-CAM family is made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.types import Output

Network = nn.Module | Callable[[Tensor], Tensor | Output]


class LayerGradients(NamedTuple):
    """What a layer said and how the scores depend on it; detached, float32 or better."""

    logits: Tensor  # (B, K) class scores
    activations: Tensor  # (B, C, h, w) the layer's output
    gradients: Tensor  # (B, N, C, h, w) derivatives of the N chosen scores of each image


def layer_gradients(network: Network, layer: nn.Module, image: Tensor, index: Tensor | None = None) -> LayerGradients:
    """Run a network once and differentiate class scores with respect to the output of one of its layers.

    The layer's output becomes a leaf of the graph, so that frozen parameters and modules that work in place after the
    layer do no harm, and nothing before the layer is kept for a backward pass. Afterwards the network is as it was:
    no hook, no `.grad`, the mode and `requires_grad` of every module and parameter restored, also after an exception.
    Works inside `torch.no_grad()` and `torch.inference_mode()`.

    Args:
        network: gives class scores (B, K), or an `Output` that holds them. A module is run in eval mode; of another
            callable only the layer is, so put its network into eval mode first.
        layer: a module that the network runs once per pass and that gives a map (B, C, h, w).
        image: (B, 3, H, W), as the network expects it.
        index: which classes' scores, (B,) or (B, N) int64; None takes all K in their order.

    Raises:
        InputError: the layer gives no map, does not run or runs more than once, or has no influence on the scores; a
            class index that does not fit.
    """
    held: list[Tensor] = []

    def hold(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        leaf = _map_of(output, module).detach().requires_grad_()
        held.append(leaf)
        torch.set_grad_enabled(True)  # networks with a frozen encoder run it under no_grad
        return leaf.clone()

    with torch.inference_mode(False), torch.enable_grad(), _resting(network, layer):
        handle = layer.register_forward_hook(hold)
        try:
            result = network(image.detach().clone())
        finally:
            handle.remove()
        logits = result.logits if isinstance(result, Output) else result
        leaf = _only(held, layer)
        chosen = _checked_index(index, logits)
        gradients = _differentiate(logits, leaf, chosen, layer)
    return LayerGradients(_full(logits.detach()), _full(leaf.detach()), _full(gradients))


@contextmanager
def _resting(network: Network, layer: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients of parameters, for a while."""
    root = network if isinstance(network, nn.Module) else layer
    modes = [(module, module.training) for module in root.modules()]
    learning = [parameter for parameter in root.parameters() if parameter.requires_grad]
    try:
        root.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)


def _differentiate(logits: Tensor, leaf: Tensor, index: Tensor, layer: nn.Module) -> Tensor:
    """(B, K) scores, (B, N) classes -> (B, N, C, h, w) gradients, one backward pass for each of the N."""
    gradients: list[Tensor] = []
    for column in range(index.shape[1]):
        # Images are independent in eval mode: the gradient of the sum holds that of every image.
        score = logits.gather(1, index[:, column : column + 1]).sum()
        last = column + 1 == index.shape[1]
        found = (
            torch.autograd.grad(score, leaf, retain_graph=not last, allow_unused=True) if score.requires_grad else ()
        )
        if not found or found[0] is None:
            raise InputError(
                f"the class scores do not depend on the layer {_describe(layer)}; choose one between image and scores"
            )
        gradients.append(found[0])
    return torch.stack(gradients, dim=1)


def _map_of(output: Any, layer: nn.Module) -> Tensor:
    if isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point():
        return output
    what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise InputError(
        f"the layer {_describe(layer)} gives {what}, not a map (B, C, h, w); choose a convolutional layer (the "
        "blocks of a ViT give tokens: take the backbone's output, where they are on their grid)"
    )


def _only(held: list[Tensor], layer: nn.Module) -> Tensor:
    if not held:
        raise InputError(
            f"the layer {_describe(layer)} does not run when the network does; choose one that does (a container's "
            "parts may be called one by one: choose the last of them)"
        )
    if len(held) > 1:
        raise InputError(
            f"the layer {_describe(layer)} runs {len(held)} times in one pass of the network; choose one that runs "
            "once, or give a callable that runs it once"
        )
    return held[0]


def _checked_index(index: Tensor | None, logits: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise InputError(f"the network gives scores of shape {tuple(logits.shape)}, not (B, K); give a classifier")
    images, classes = logits.shape
    if index is None:
        return torch.arange(classes, device=logits.device).expand(images, classes)
    chosen = index.to(logits.device, torch.int64)
    chosen = chosen[:, None] if chosen.ndim == 1 else chosen
    fits = chosen.ndim == 2 and chosen.shape[0] == images and chosen.shape[1] > 0
    if not (fits and ((chosen >= 0) & (chosen < classes)).all()):
        raise InputError(
            f"class index of shape {tuple(index.shape)}: give (B,) or (B, N) with B = {images} and values from 0 to "
            f"{classes - 1}"
        )
    return chosen


def _describe(layer: nn.Module) -> str:
    return type(layer).__name__


def _full(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
