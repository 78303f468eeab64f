"""Gradients of class scores with respect to a layer's activations: what the Grad-CAM family is made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.maps import at_least_float32
from histoloc.types import Output

Network = nn.Module | Callable[[Tensor], Tensor | Output]


class LayerGradients(NamedTuple):
    """What a layer said and how the scores depend on it; detached, float32 or better."""

    logits: Tensor  # (B, K) class scores
    activations: Tensor  # (B, C, h, w) the layer's output
    gradients: Tensor  # (B, N, C, h, w) derivatives of the N chosen scores of each image


def layer_gradients(network: Network, layer: nn.Module, image: Tensor, index: Tensor | None = None) -> LayerGradients:
    """Run a network once and differentiate class scores with respect to the output of one of its layers.

    The layer's output becomes a leaf of the graph: frozen parameters and modules that work in place do no harm. The
    network is left as it was, also after an exception. Works inside `torch.no_grad()` and `torch.inference_mode()`.

    Args:
        network: gives class scores (B, K), or an `Output` that holds them; in eval mode, which a module is put into.
        layer: a module that the network runs once per pass and that gives a map (B, C, h, w).
        image: (B, 3, H, W), as the network expects it.
        index: which classes' scores, (B,) or (B, N) int64; None takes all K in their order.

    Raises:
        InputError: the layer gives no map, does not run exactly once, or has no influence on the scores.
    """
    leaves: list[Tensor] = []
    name = type(layer).__name__

    def hold(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4 or not output.is_floating_point():
            shape = f"tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"the layer {name} gives a {shape}, not a map (B, C, h, w); choose a convolutional layer (blocks of a "
                "ViT give tokens: take the backbone's output)"
            )
        leaves.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)  # networks with a frozen encoder run it under no_grad
        return leaves[-1].clone()

    with torch.inference_mode(False), torch.enable_grad(), _resting(network, layer):
        handle = layer.register_forward_hook(hold)
        try:
            result = network(image.detach().clone())
        finally:
            handle.remove()
        if len(leaves) != 1:
            raise InputError(
                f"the layer {name} runs {len(leaves)} times in one pass of the network; choose one that runs once (of "
                "a container the last part), or give a callable that runs it once"
            )
        logits = result.logits if isinstance(result, Output) else result
        index = torch.arange(logits.shape[1]).expand(logits.shape) if index is None else index
        # Images are independent in eval mode: the gradient of the sum holds that of every image.
        class_logits = logits.gather(1, index.to(logits.device, torch.int64).view(len(logits), -1))
        scores = class_logits.sum(dim=0) if class_logits.requires_grad else ()
        gradients = [torch.autograd.grad(s, leaves[0], retain_graph=True, allow_unused=True)[0] for s in scores]
        if not gradients or gradients[0] is None:
            raise InputError(f"the class scores do not depend on the layer {name}; choose one between image and scores")
        values = logits.detach(), leaves[0].detach(), torch.stack(gradients, dim=1)
        return LayerGradients(*map(at_least_float32, values))


@contextmanager
def _resting(network: Network, layer: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients of parameters, for a while."""
    root = network if isinstance(network, nn.Module) else layer
    modes = [(module, module.training) for module in root.modules()]
    learning = [parameter for parameter in root.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        root.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)
