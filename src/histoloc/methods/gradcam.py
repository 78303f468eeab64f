"""The Grad-CAM family: maps from gradients of a class score with respect to a layer's activations.

A rule is a pure function (activations, gradients) -> map. `gradient_maps` applies one to any classifier, also to one
that was trained as another method:

    method = histoloc.load("runs/gap").method
    logits, maps = gradient_maps(method, method.backbone, image)                     # (B, K), (B, K, h, w)
    logits, maps = gradient_maps(method, method.backbone.model.blocks[2], image, logits.argmax(dim=1), layercam)
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.bounds import Count, NotNegative, Whole
from histoloc.errors import InputError
from histoloc.methods.base import Classifier, Setting
from histoloc.nn.gradients import Network, layer_gradients
from histoloc.types import Output

Rule = Callable[[Tensor, Tensor], Tensor]
_TRIAL_SIDE = 64
WEIGHTS_PER_TILE = "channels are weighted by what each tile shows"


class GradientMaps(NamedTuple):
    """What `gradient_maps` finds."""

    logits: Tensor  # (B, K) float32, class scores of the images without noise
    maps: Tensor  # (B, N, h, w) float32, at least 0, one map for each chosen class


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM, Eq. 1 and 2 of Selvaraju et al. (2017): ReLU(sum_k w_k A_k), w_k the mean gradient of channel k.

    Args:
        activations: (B, C, h, w).
        gradients: (B, C, h, w) of one class score.

    Returns:
        (B, h, w), at least 0; so do the other rules.
    """
    return _weighted(activations, gradients.mean(dim=(-2, -1), keepdim=True))


def gradcampp(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++, Eq. 5 and 19 of Chattopadhay et al. (2018): w_k = sum_ij alpha_kij relu(g_kij).

    alpha_kij = g_kij² / (2 g_kij² + (sum_ab A_kab) g_kij³), 0 where g is. Made for activations >= 0, where alpha is at
    most 1/2 if g > 0. Some code has sum_ab A_kab g_kab³ in the denominator, which differs at inner layers.
    """
    return smoothgradcampp(activations, gradients[None])


def smoothgradcampp(activations: Tensor, gradients: Tensor) -> Tensor:
    """Smooth Grad-CAM++ (Omeiza et al., 2019): Grad-CAM++ with g, g² and g³ averaged over noisy copies of the image.

    The numerator of alpha is the second power, as in Grad-CAM++; the paper prints the first.

    Args:
        activations: (B, C, h, w), of the image without noise.
        gradients: (S, B, C, h, w), of S noisy copies.
    """
    if gradients.ndim != activations.ndim + 1:
        raise InputError("smoothgradcampp needs the gradients of noisy copies; give gradient_maps some noise")
    # g³ of a small g is below what float32 holds, hence powers of g / max |g|.
    scale = gradients.abs().amax(dim=(0, -2, -1), keepdim=True)
    unit = _ratio(gradients, scale)
    second, third = unit.square().mean(dim=0), unit.pow(3).mean(dim=0)
    total = activations.sum(dim=(-2, -1), keepdim=True)
    alpha = _ratio(second, 2 * second + total * scale[0] * third)
    return _weighted(activations, (alpha * gradients.mean(dim=0).relu()).sum(dim=(-2, -1), keepdim=True))


def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM (Fu et al., 2020): w_k = sum_ij g_kij A_kij / sum_ij A_kij; 0 for a channel that is silent.

    Equals Grad-CAM where the gradient is the same at every position, whatever the sign of the activations.
    """
    total = activations.sum(dim=(-2, -1), keepdim=True)
    return _weighted(activations, _ratio((gradients * activations).sum(dim=(-2, -1), keepdim=True), total))


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM (Jiang et al., 2021): every position has its own weight, w_kij = relu(g_kij)."""
    return _weighted(activations, gradients.relu())


def _weighted(activations: Tensor, weights: Tensor) -> Tensor:
    return (weights * activations).sum(dim=-3).relu()


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0: nothing there has a say."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def gradient_maps(
    network: Network,
    layer: nn.Module,
    image: Tensor,
    index: Tensor | None = None,
    rule: Rule = gradcam,
    noise: Tensor | None = None,
) -> GradientMaps:
    """Apply a rule of the family to any classifier, trained as whatever method.

    Args:
        network: the classifier: a method, any module with scores (B, K), or a callable, as in `layer_gradients`.
            Max-min runs its encoder several times; take `lambda image: method.locate(image)[0]` there.
        layer: one of its modules that gives a map; for histoloc's methods `method.backbone`, or a module inside
            `method.backbone.model`.
        image: (B, 3, H, W), normalised as the network expects it.
        index: which classes, (B,) or (B, N) int64; None takes all K.
        rule: gradcam, gradcampp, xgradcam, layercam; smoothgradcampp, which needs noise; or your own.
        noise: (S, 1, 3, H, W) or (S, B, 3, H, W), added to the image in S extra passes. The rule then gets their
            gradients as (S, B, C, h, w); the activations stay those of the image itself.

    Returns:
        The scores, and one map for each chosen class at the layer's own size.

    Raises:
        InputError: the layer gives no map, does not run exactly once, or has no influence on the scores.

    Example:
        >>> import histoloc, torch  # doctest: +SKIP
        >>> method = histoloc.load("runs/gap").method  # doctest: +SKIP
        >>> image = torch.randn(1, 3, 416, 416)  # doctest: +SKIP
        >>> logits, maps = gradient_maps(method, method.backbone, image, rule=layercam)  # doctest: +SKIP
    """
    logits, activations, gradients = layer_gradients(network, layer, image, index)
    if noise is not None:
        gradients = torch.stack([layer_gradients(network, layer, image + n, index).gradients for n in noise])
    maps = [rule(activations, gradient) for gradient in gradients.unbind(dim=-4)]
    return GradientMaps(logits, torch.stack(maps, dim=1))


@dataclass(frozen=True)
class GradCamOptions:
    """Options of the Grad-CAM family.

    Attributes:
        layer: which activations are weighted: the name of a module inside the timm model (blocks.2), or empty for the
            backbone's output.
    """

    layer: str = ""


class GradCam(Classifier):
    """Grad-CAM (Selvaraju et al., ICCV 2017, Eq. 1 and 2).

    The network of CAM: features are averaged over positions and classified by a linear layer, with cross-entropy. The
    map of class c weights a layer's activations A_k by the mean gradient of the class score y_c:

        ReLU(sum_k w_kc A_k),   w_kc = (1/Z) sum_ij dy_c / dA_kij

    The ROI map is that of the predicted class. With the backbone's output as layer it
    equals ReLU(CAM) up to a factor.
    """

    title: ClassVar[str] = "Grad-CAM"
    paper: ClassVar[str] = "Selvaraju et al., Grad-CAM: visual explanations from deep networks, ICCV 2017"
    rule: ClassVar[Rule] = staticmethod(gradcam)  # what the members of the family differ in
    options: GradCamOptions
    falls_with_size: ClassVar[bool] = True  # the gradient of a mean over N positions is in proportion to 1/N

    def __init__(self, setting: Setting, options: GradCamOptions) -> None:
        super().__init__(setting, options)
        self.head = nn.Linear(self.backbone.channels, len(setting.classes))
        self._stride = self._layer_stride()

    def forward(self, image: Tensor) -> Output:
        """Scores of the averaged features; the evidence of this pass is CAM, which needs no gradient."""
        features = self.backbone(image)
        logits = self.head(features.mean(dim=(2, 3))).float()
        maps = F.conv2d(features, self.head.weight[:, :, None, None]).float()
        return Output(logits, maps, {})

    def evidence(self, image: Tensor) -> Output:
        """The gradient maps of every class; times the number of positions where they fall with the image's size."""
        logits, maps = gradient_maps(self, self.layer, image, rule=type(self).rule, noise=self.noise(image))
        positions = maps.shape[-2] * maps.shape[-1] if self.falls_with_size else 1
        return Output(logits, maps * positions, {})

    @property
    def in_tiles(self) -> str:
        """At the backbone's output the gradient of a linear head is the same in every image."""
        return WEIGHTS_PER_TILE if self.options.layer else ""

    @property
    def stride(self) -> int:
        """Of the layer whose activations are weighted."""
        return self._stride

    def noise(self, image: Tensor) -> Tensor | None:
        """What is added to the image in extra passes, (S, 1, 3, H, W); None for rules that need none."""
        return None

    @property
    def layer(self) -> nn.Module:
        """The module whose activations are weighted."""
        name = self.options.layer
        return self.backbone.model.get_submodule(name) if name else self.backbone

    def _layer_stride(self) -> int:
        """Input pixels per position of the layer; fails when the method is built rather than after hours of training.

        Raises:
            InputError: no such layer, or one that gives no map.
        """
        name = self.options.layer
        if not name:
            return self.backbone.stride
        known = [module for module, _ in self.backbone.model.named_modules() if module]
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
            raise InputError(
                f"--layer {name!r} is no module of {self.setting.backbone.backbone}; choose one, for example "
                f"{', '.join(near)}, or leave it empty for the backbone's output"
            )
        size = (getattr(self.backbone.model, "pretrained_cfg", None) or {}).get("input_size")
        height, width = size[1:] if size else (_TRIAL_SIDE, _TRIAL_SIDE)
        try:
            activations = layer_gradients(self, self.layer, torch.zeros(1, 3, height, width)).activations
        except InputError as error:
            raise InputError(f"--layer {name}: {error}") from error
        return max(1, round(height / activations.shape[-2]))


class GradCamPP(GradCam):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, Eq. 5 and 19).

    As Grad-CAM, with positions weighted by higher derivatives, so that several objects of a class count alike:

        w_kc = sum_ij alpha_kij relu(g_kij),   alpha_kij = g_kij² / (2 g_kij² + (sum_ab A_kab) g_kij³)

    with g_kij = dy_c / dA_kij. Made for activations >= 0, as after a ReLU. The blocks of EfficientNets and
    ViTs end without one, and a channel of both signs can get a large weight: `--layer` can name one of the inner
    activations (blocks.2.1.bn2).
    """

    title: ClassVar[str] = "Grad-CAM++"
    paper: ClassVar[str] = "Chattopadhay et al., Grad-CAM++: generalized gradient-based visual explanations, WACV 2018"
    rule: ClassVar[Rule] = staticmethod(gradcampp)
    falls_with_size: ClassVar[bool] = False  # its weights sum over positions

    @property
    def in_tiles(self) -> str:
        """Its weights depend on the activations of all positions."""
        return WEIGHTS_PER_TILE


class XGradCam(GradCam):
    """XGrad-CAM (Fu et al., BMVC 2020).

    As Grad-CAM, with gradients averaged in proportion to the activations, derived from the axioms of sensitivity and
    conservation:

        w_kc = sum_ij g_kij A_kij / sum_ij A_kij,   g_kij = dy_c / dA_kij

    With the backbone's output as layer g is the same at every position, and the map equals Grad-CAM's.
    """

    title: ClassVar[str] = "XGrad-CAM"
    paper: ClassVar[str] = "Fu et al., Axiom-based Grad-CAM: towards accurate visualization of CNNs, BMVC 2020"
    rule: ClassVar[Rule] = staticmethod(xgradcam)


class LayerCam(GradCam):
    """LayerCAM (Jiang et al., IEEE TIP 2021).

    As Grad-CAM, with a weight for every position instead of every channel, which also suits early layers:

        ReLU(sum_k relu(g_kij) A_kij),   g_kij = dy_c / dA_kij

    Made for activations >= 0, like Grad-CAM++.
    """

    title: ClassVar[str] = "LayerCAM"
    paper: ClassVar[str] = "Jiang et al., LayerCAM: hierarchical class activation maps, IEEE TIP 30:5875-5888, 2021"
    rule: ClassVar[Rule] = staticmethod(layercam)


@dataclass(frozen=True)
class SmoothGradCamPPOptions(GradCamOptions):
    """Options of Smooth Grad-CAM++.

    Attributes:
        layer: which activations are weighted: the name of a module inside the timm model (blocks.2), or empty for the
            backbone's output.
        samples: noisy copies of an image.
        noise: standard deviation of the noise, in units of the normalised input.
        noise_seed: the noise is a function of it and of the image's size alone: the same for every image.
    """

    samples: Count = 4
    noise: NotNegative = 0.3
    noise_seed: Whole = 0


class SmoothGradCamPP(GradCamPP):
    """Smooth Grad-CAM++ (Omeiza et al., 2019).

    Grad-CAM++ with the powers of the gradient averaged over noisy copies of the normalised image:

        w_kc = sum_ij alpha_kij relu(mean g_kij),   alpha_kij = mean g² / (2 mean g² + (sum_ab A_kab) mean g³)

    The activations are those of the image without noise, and the ReLU takes the mean gradient, not that
    of the last noisy copy.
    """

    title: ClassVar[str] = "Smooth Grad-CAM++"
    paper: ClassVar[str] = "Omeiza et al., Smooth Grad-CAM++: an enhanced inference level visualization, 2019"
    rule: ClassVar[Rule] = staticmethod(smoothgradcampp)
    options: SmoothGradCamPPOptions  # pyright: ignore[reportIncompatibleVariableOverride]

    def noise(self, image: Tensor) -> Tensor:
        """Drawn on the CPU, so that every device sees the same; one draw for all images of a batch."""
        generator = torch.Generator().manual_seed(self.options.noise_seed)
        normal = torch.randn(self.options.samples, 1, *image.shape[1:], generator=generator)
        return (self.options.noise * normal).to(image.device, image.dtype)
