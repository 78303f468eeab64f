"""Cross-fit: a sharp map from labels alone, taught by linear classifiers of images that they never saw."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from histoloc.bounds import Integer, NotNegative, Positive
from histoloc.maps import place
from histoloc.methods.base import Supervision
from histoloc.methods.cues import nuclei_around_lumens, standardised
from histoloc.methods.student import Student, StudentOptions
from histoloc.nn.backbone import build_backbone
from histoloc.types import Output, Unit

_STRIDE = 8  # input pixels per position of the features that are judged; the backbone's nearest level
_SMOOTH = 5  # positions of a side of the window whose mean is taken
_TINY = 1e-6


@dataclass(frozen=True)
class CrossFitOptions(StudentOptions):
    """Options of a cross-fitted student.

    Attributes:
        parts: into how many parts the training images are divided; each is judged by a classifier of the others.
        ridge: weight of the squared coefficients of these classifiers, in units of the features' mean variance.
        cue: what is added to the standardised evidence: nothing, or lumens, the nuclei around a lumen that glands have.
            With it a model has learned from labels and a cue, and tables say so.
        cue_weight: of the standardised cue, where the evidence has 1.
        steepness: factor on an image's standardised evidence, before the sigmoid that makes it the target.
    """

    parts: Annotated[Integer, Field(ge=2)] = 5
    ridge: Positive = 1.0
    cue: Literal["none", "lumens"] = "none"
    cue_weight: NotNegative = 1.0
    steepness: Positive = 2.0
    sharpness: Positive = 1.0
    flips: Annotated[Integer, Field(ge=1, le=4)] = 4


class CrossFit(Student):
    """A backbone with a decoder that learns its map from labels, by way of classifiers that cannot memorise.

    The features f of the backbone's own weights, which stay as they are, are averaged over each image. A ridge
    regression of the labels on these means has one solution: no seed, no schedule. Its coefficients w_c say of each
    position of an image with label y how much it speaks for the label,

        e = (w_y - mean_(c != y) w_c) · f

    and are asked only about images that they were not fitted to (cross-fitting). With z the smoothed evidence,
    standardised in every image, p the student's probability and p̂ the class probabilities, the loss is

        min mean(-q log p - (1 - q) log(1 - p)) + H(y, p̂),  q = sigmoid(s z)

    Evidence of one position is mostly noise. The student learns what positions of the same look have in common, at the
    decoder's resolution. About half of each image is its target, so a range is learned for its scores.
    """

    title: ClassVar[str] = "Cross-fit"
    paper: ClassVar[str] = "histoloc; cross-fitting as in Chernozhukov et al., Econometrics Journal 21:C1-C68, 2018"
    options: CrossFitOptions  # pyright: ignore[reportIncompatibleVariableOverride]
    unit: Unit = "score"
    taught: ClassVar[bool] = False
    default_training: ClassVar[Mapping[str, Any]] = {
        "epochs": 15,
        "optimizer": "adamw",
        "lr": 2e-3,
        "schedule": "one-cycle",
        "selection": "last",
    }

    @classmethod
    def learns_from(cls, options: CrossFitOptions) -> frozenset[Supervision]:
        """Labels, and the cue."""
        return frozenset({"image"} if options.cue == "none" else {"image", "cue"})

    def first_targets(self, image: Callable[[int], Tensor], labels: Tensor) -> list[Tensor]:
        """What classifiers of the other images say of each image, in [0, 1]; zeros for the class without ROI.

        Images are looked at twice, so that their features need not be kept. What follows them is computed on the CPU in
        double precision, which not every device has.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # where weights are random, those of a resumed run are the same
            backbone = build_backbone(self.setting.backbone).to(image(0).device).eval()
        level = min(range(len(backbone.levels)), key=lambda i: abs(backbone.level_strides[i] - _STRIDE))
        stride = backbone.level_strides[level]

        def features(pixels: Tensor) -> Tensor:
            height, width = (-(-side // stride) for side in pixels.shape[-2:])
            return backbone.pyramid(self.continued(pixels[None]))[level][0, :, :height, :width].cpu().double()

        maps = (features(image(index)) for index in range(len(labels)))
        means, squares = torch.stack([torch.stack([f.mean((1, 2)), f.square().mean((1, 2))]) for f in maps], dim=1)
        scale = (squares.mean(dim=0) - means.mean(dim=0).square()).clamp_min(_TINY).sqrt()
        parts = divided(labels, self.options.parts)
        weights = {
            part: ridge(means[parts != part] / scale, labels[parts != part], self.options.ridge) / scale[:, None]
            for part in parts.unique().tolist()
        }
        targets = []
        for index, own in enumerate(labels):
            pixels = image(index)
            if self.empty_class is not None and own.nonzero().flatten().tolist() == [self.empty_class]:
                targets.append(torch.zeros(1, *pixels.shape[-2:]))
                continue
            speaks = torch.einsum("c,chw->hw", in_favour(weights[int(parts[index])], own), features(pixels))
            smooth = F.avg_pool2d(speaks[None, None], _SMOOTH, 1, _SMOOTH // 2, count_include_pad=False)
            targets.append(self._target(place(smooth, stride, pixels.shape[-2:]), pixels.cpu()))
        return targets

    def _target(self, evidence: Tensor, pixels: Tensor) -> Tensor:
        """Evidence (1, 1, H, W) of an image (3, H, W), joined by the cue -> (1, H, W) in [0, 1]."""
        z = standardised(evidence)
        if self.options.cue != "none":
            mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (self.setting.mean, self.setting.std))
            cue = nuclei_around_lumens((pixels * std + mean).clamp(0, 1))
            z = standardised(z + self.options.cue_weight * standardised(cue))
        return torch.sigmoid(self.options.steepness * z)[0]

    def image_map(self, output: Output, values: Tensor, label: Tensor) -> Tensor:
        """The sigmoid of an image's standardised evidence, as the target was made."""
        return torch.sigmoid(self.options.steepness * standardised(values))


def divided(labels: Tensor, parts: int) -> Tensor:
    """The part of each image, so that every class is spread over all parts: (N, K) bool -> (N,)."""
    order = torch.argsort(labels.long().argmax(dim=1), stable=True)
    result = torch.empty(len(labels), dtype=torch.long)
    result[order] = torch.arange(len(labels)) % parts
    return result


def ridge(features: Tensor, labels: Tensor, weight: float) -> Tensor:
    r"""Coefficients of the ridge regression of labels on features, the intercept free.

    Minimises \(\frac1N \|Y - 1 b^T - X W\|^2 + \lambda v \|W\|^2\) with v the mean variance of the features.

    Args:
        features: (N, D).
        labels: (N, K) bool.
        weight: λ.

    Returns:
        (D, K), float64.
    """
    x, y = features.double(), labels.double()
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    variance = x.square().mean().clamp_min(_TINY)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(x.T @ x / len(x) + weight * variance * eye, x.T @ y / len(x))


def in_favour(weights: Tensor, own: Tensor) -> Tensor:
    """Coefficients (D,) of how much features speak for the classes `own` (K,) bool and against the others: (D, K)."""
    others = weights[:, ~own].mean(dim=1) if bool((~own).any()) else 0
    return weights[:, own].mean(dim=1) - others
