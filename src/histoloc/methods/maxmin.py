"""Max-min uncertainty: certain inside the mask, maximally uncertain outside it, both regions as large as possible."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from histoloc.bounds import Count, NotNegative, Number, PartBelowOne, Positive, Scales, ShareAboveNone
from histoloc.errors import InputError
from histoloc.losses import (
    absolute_size,
    barrier_at,
    classification,
    empty_map,
    foreground_size,
    negative_entropy,
    uniform_cross_entropy,
)
from histoloc.maps import normalise_batch, normalise_per_image, place, resize
from histoloc.methods.base import Setting
from histoloc.methods.mean_teacher import MeanTeacher
from histoloc.nn.average import Average
from histoloc.nn.backbone import Backbone, build_backbone
from histoloc.nn.decoder import SumDecoder
from histoloc.nn.pooling import WildcatHead
from histoloc.types import Batch, Output


@dataclass(frozen=True)
class MaxMinOptions:
    """Options of max-min; the defaults are the authors' GlaS settings except where the text says otherwise.

    Attributes:
        background: R of Eq. 1 on the background: none, eem (explicit entropy) or sem (surrogate: uniform target).
        background_weight: lambda of Eq. 1. The authors' 1e-7 has no measurable effect: docs/max-min.md.
        background_trains: which parameters R trains: both networks, or the localizer only. A classifier that is
            trained by R can satisfy it by recognising dimmed images instead of empty ones.
        size: asc = absolute size constraints on both regions, foreground = on the ROI alone, or none.
        foreground_weight: weight of the cross-entropy on X+; 0 leaves the classifier out, and the localizer gives the
            class, as in the authors' code for Camelyon16.
        localizer_weight: weight of the localizer's own cross-entropy, which Eq. 1 lacks and the authors use.
        slope: w of the mask M+ = sigmoid(w (u - sigma)), u in [0, 1]. The authors' 5 with sigma .15 keeps M+ above .32
            everywhere; 10 with sigma .5 lets it reach from .007 to .993: docs/max-min.md.
        sigma_start: sigma in the first epoch; the mask's cut (0.5) lies at u = sigma. The authors: .15, step .001, cap
            .2.
        sigma_step: added to sigma after each epoch.
        sigma_cap: largest sigma.
        barrier_start: t of the log-barrier in the first epoch.
        barrier_factor: t is multiplied by this after each epoch.
        barrier_cap: largest t.
        modalities: WILDCAT's maps per class.
        kmax: how many of WILDCAT's highest activations count: below 1 a share of the positions, from 1 up their number
            (1 is the maximum alone).
        kmin: how many of its lowest activations count, likewise; 0 switches them off.
        alpha: weight of the lowest activations.
        dropout: dropout on the selected activations in training.
        scale: size of the masked images relative to the image.
        networks: shared = one encoder (the authors' code), two = a localizer and a classifier (the paper's figure).
        localizer: wildcat = class maps of a WILDCAT head; decoder = one map of a decoder over all levels, the network
            of priors, with a classifier beside it. Its M+ is the sigmoid of its score: slope, sigma, normalisation,
            networks and localizer_weight have no effect. Give it `--stride 16`, so that the classifier is deep.
        average: of a decoder: predict with a running average of its weights that keeps this share of itself in each
            step, 0 for none. It also teaches: the map is held to what the average says of the image as it is.
        drawn_weight: of a decoder: weight of the cross-entropy of drawn images (--drawn) against their masks.
        consistency_weight: of a decoder: weight of the cross-entropy with what the average says.
        randomise: of a decoder: strong randomisation of colours and sharpness in training, and glass in a third of the
            drawn images; it takes the place of --brightness, --contrast, --saturation and --hue.
        flips: of a decoder: how many mirror images of an image are averaged: 1, 2 or 4.
        scales: of a decoder: enlargements of an image whose maps are averaged.
        structure_weight: of a decoder: of the structure's pixels in the cross-entropy of drawn images.
        normalisation: of the evidence: per image, per batch (as the authors' code), or none (sigmoid of w times it).
        fill: what takes the place of masked-out pixels: grey (zero after normalisation, as the authors), black, mean
            (the image's mean colour) or blur (the blurred image).
        joint: pass both masked images through the classifier as one batch, which shares the batch statistics;
            otherwise one after the other, as always with background_trains = localizer.
    """

    background: Literal["none", "eem", "sem"] = "sem"
    background_weight: NotNegative = 1.0
    background_trains: Literal["both", "localizer"] = "both"
    size: Literal["none", "asc", "foreground"] = "asc"
    foreground_weight: NotNegative = 1.0
    localizer_weight: NotNegative = 1.0
    slope: Positive = 10.0
    sigma_start: Number = 0.5
    sigma_step: Number = 0.0
    sigma_cap: Number = 0.5
    barrier_start: Positive = 5.0
    barrier_factor: Positive = 1.01
    barrier_cap: Positive = 10.0
    modalities: Count = 5
    kmax: Positive = 0.3
    kmin: NotNegative = 0.0
    alpha: NotNegative = 0.6
    dropout: PartBelowOne = 0.1
    scale: ShareAboveNone = 0.8
    networks: Literal["shared", "two"] = "shared"
    localizer: Literal["wildcat", "decoder"] = "wildcat"
    average: PartBelowOne = 0.0
    drawn_weight: NotNegative = 1.0
    consistency_weight: NotNegative = 1.0
    randomise: bool = False
    flips: Count = 2
    scales: Scales = (1.0,)
    structure_weight: Positive = 1.0
    normalisation: Literal["image", "batch", "none"] = "image"
    fill: Literal["grey", "black", "mean", "blur"] = "grey"
    joint: bool = True

    def __post_init__(self) -> None:
        without_classifier = self.background == "none" and self.networks == "shared" and self.localizer_weight
        if not self.foreground_weight and not (without_classifier and self.localizer == "wildcat"):
            raise InputError(
                "--foreground-weight 0 leaves the classifier of masked images out: it needs --background none, "
                "--networks shared, --localizer wildcat and a --localizer-weight above 0"
            )


class MaxMin(MeanTeacher):
    """Max-min uncertainty (Belharbi et al., TMI 2022 and MIDL 2022, Eq. 1).

    A localizer makes a mask M⁺; the classifier sees the image inside (X⁺) and outside (X⁻) of it and is trained to be
    certain of the class inside and maximally uncertain outside, while log-barriers keep both regions large:

        min H(p, p̂⁺) + λ R(p̂⁻) - (1/t) [log s⁺ + log s⁻]

    The class is read from X⁺. The paper's ROI map (`--range image`) is M⁺, the mask that the classifier sees: made of
    the class maps, weighted by the localizer's class probabilities and stretched in every image. The evidence, which
    can be compared between images and tiles, is the predicted class's map.
    """

    title: ClassVar[str] = "Max-min"
    paper: ClassVar[str] = "Belharbi et al., Max-min uncertainty, IEEE TMI 41:702-714, 2022"
    # A map that is stretched in every image has ROI in every image. Without stretching, the paper's slope.
    with_empty_class: ClassVar[Mapping[str, Any]] = {"normalisation": "none", "slope": 5.0}
    with_prior: ClassVar[Mapping[str, Any]] = {"localizer": "decoder", "average": 0.99, "randomise": True}
    options: MaxMinOptions
    black: Tensor

    def __init__(self, setting: Setting, options: MaxMinOptions) -> None:
        super().__init__(setting, options)
        if self.empty_class is not None:
            _check_empty_class(options)
        self.decodes = options.localizer == "decoder"
        self.slope, self.drawn = options.slope, 0
        if options.normalisation == "none" or self.decodes:
            self.unit = "logit"  # sigmoid(w times the evidence) is M⁺
        backbone = build_backbone(setting.backbone)
        channels, classes = backbone.channels, len(setting.classes)
        if self.decodes:
            self.backbone, self.decoder, self.slope = backbone, SumDecoder(backbone, maps=1), 1.0
        else:
            self.localizer, self.localizer_head = backbone, WildcatHead(channels, classes, options)
        self.average = Average(self.network(), options.average) if self.decodes and options.average else None
        shared = options.networks == "shared" and not self.decodes
        self.classifier = None if shared else build_backbone(setting.backbone)
        self.classifier_head = WildcatHead(channels, classes, options) if self.classifies_masked else None
        self.roi_head = None if self.empty_class is None else nn.Conv2d(channels, 1, kernel_size=1)
        black = [-m / s for m, s in zip(setting.mean, setting.std, strict=True)]
        self.register_buffer("black", torch.tensor(black).view(1, 3, 1, 1), persistent=False)

    @property
    def classifies_masked(self) -> bool:
        """Whether masked images are classified at all."""
        return self.options.foreground_weight > 0

    def sigma(self) -> Tensor:
        """The mask's offset in the current epoch; it travels with the weights."""
        o = self.options
        return (o.sigma_start + o.sigma_step * self.epoch).clamp(max=max(o.sigma_cap, o.sigma_start))

    def locate(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The localizer: image -> class scores (B, K), class maps (B, K, h, w), and what the mask is made of.

        The third is the mask's evidence (B, 1, h, w), the class maps weighted by the classes' probabilities, and the
        fourth the mask M⁺ (B, 1, H, W).
        """
        if self.decodes:
            output = self.look(self, image) if self.training else self.views(image)
            mask = place(output.evidence, self.stride, image.shape[-2:]).sigmoid()
            return output.logits, output.evidence, output.evidence, mask
        features = self.localizer(image)
        logits, maps = self.localizer_head(features)
        if self.roi_head is None:
            combined = (logits.softmax(dim=1)[:, :, None, None] * maps).sum(dim=1, keepdim=True)
        else:
            combined = self.roi_head(features).float()
        u = place(combined, self.stride, image.shape[-2:])
        if self.unit == "logit":
            return logits, maps, combined, (self.slope * u).sigmoid()
        # In eval mode of each image alone, also where training normalises over the batch.
        over_batch = self.options.normalisation == "batch" and self.training
        return logits, maps, combined, self._mask(normalise_batch(u) if over_batch else normalise_per_image(u))

    def _mask(self, u: Tensor) -> Tensor:
        """M⁺ of evidence in [0, 1]."""
        return (self.options.slope * (u - self.sigma().to(u.device))).sigmoid()

    def cut(self, image: Tensor, mask: Tensor) -> Tensor:
        """The image where the mask is one, the fill elsewhere, at the classifier's scale."""
        cut = image * mask
        if self.options.fill != "grey":
            cut = cut + self._fill(image) * (1 - mask)
        if self.options.scale == 1:
            return cut
        size = [max(32, round(side * self.options.scale)) for side in image.shape[-2:]]
        return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)

    def _fill(self, image: Tensor) -> Tensor:
        """What takes the place of masked-out pixels."""
        if self.options.fill == "black":
            return self.black.to(image.dtype)
        if self.options.fill == "mean":
            return image.mean(dim=(2, 3), keepdim=True)
        height, width = image.shape[-2:]
        return resize(F.adaptive_avg_pool2d(image, (max(1, height // 32), max(1, width // 32))), (height, width))

    def forward(self, image: Tensor) -> Output:
        """Localizer on X, classifier on X⁺ and X⁻; of drawn images behind the real ones the map alone."""
        o = self.options
        logits, maps, combined, mask = self.locate(image)
        if self.training and self.drawn:
            image, mask = image[: -self.drawn], mask[: -self.drawn]
        terms = {"localizer": logits, "mask": mask, "combined": combined}
        evidence = self._evidence(maps, combined)
        if not self.classifies_masked:
            return Output(logits, evidence, terms)
        inside = self.cut(image, mask)
        if o.background == "none" and self.roi_head is None:
            certain = self.classify(inside)
        elif o.joint and o.background_trains == "both":
            both = self.classify(torch.cat([inside, self.cut(image, 1 - mask)]))
            certain, terms["background"] = both.chunk(2)
        else:
            certain = self.classify(inside)
            terms["background"] = self.classify(self.cut(image, 1 - mask), frozen=o.background_trains == "localizer")
        if self.roi_head is None:
            return Output(certain, evidence, terms)
        return Output(logits, evidence, terms | {"inside": certain})

    def prepare(self, batch: Batch) -> Batch:
        """As every mean teacher where the localizer is a decoder."""
        if self.decodes:
            self.drawn = 0 if batch.drawn is None else len(batch.drawn.image)
            return super().prepare(batch)
        if batch.drawn is not None:
            raise InputError("--drawn needs --localizer decoder: class maps do not learn from drawn masks")
        return batch

    def is_taught(self, batch: Batch) -> bool:
        """Always: what the average says holds the map to what it was."""
        return True

    def _evidence(self, maps: Tensor, combined: Tensor) -> Tensor:
        """The class maps, by which tiles can be compared.

        Where the map needs no range, or no loss tells the localizer which of its maps is which class's, one map: what
        the mask is made of.
        """
        if self.unit == "logit":
            return self.slope * combined
        return maps if self.options.localizer_weight else combined

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The terms of Eq. 1, and the localizer's own cross-entropy."""
        o = self.options
        has_roi = self._has_roi(batch)
        losses = {}
        if self.classifies_masked:
            certain = classification(output.terms.get("inside", output.logits), batch, each=True)
            losses["foreground"] = o.foreground_weight * (has_roi * certain).mean()
        if o.localizer_weight and not self.decodes:
            losses["localizer"] = o.localizer_weight * classification(output.terms["localizer"], batch)
        if o.background != "none":
            uncertainty = negative_entropy if o.background == "eem" else uniform_cross_entropy
            losses["background"] = o.background_weight * (has_roi * uncertainty(output.terms["background"])).mean()
        if o.size != "none":
            size = absolute_size if o.size == "asc" else foreground_size
            losses["size"] = (has_roi * size(output.terms["mask"], barrier_at(o, epoch))).mean()
        if self.decodes:
            losses |= self.map_losses(output.evidence, batch, drawn=o.drawn_weight, average=o.consistency_weight)
        if self.roi_head is not None:
            empty = empty_map(output.terms["combined"])
            if self.classifies_masked:
                # The background of an image without ROI is the whole image: it must be recognised for what it is.
                empty = empty + classification(output.terms["background"], batch, each=True)
            losses["empty"] = ((1 - has_roi) * empty).mean()
        return losses

    def _has_roi(self, batch: Batch) -> Tensor:
        """(B,) 1 for images with ROI: those that have a class besides the one without, 0 for the others."""
        if batch.labels is None or self.empty_class is None:
            return (batch.label != (-1 if self.empty_class is None else self.empty_class)).float()
        return batch.labels[:, [k for k in range(batch.labels.shape[1]) if k != self.empty_class]].any(dim=1).float()

    def evidence(self, image: Tensor) -> Output:
        """Class from X⁺ (from X where a class has no ROI); the class maps, before they are weighted and normalised.

        Weighted by the classes' probabilities, maps of normal and of other tissue would be one evidence for both.
        """
        logits, maps, combined, mask = self.locate(image)
        if self.classifies_masked and self.roi_head is None:
            logits = self.classify(self.cut(image, mask))
        return Output(logits, self._evidence(maps, combined), {"combined": combined})

    def image_map(self, output: Output, values: Tensor, label: Tensor) -> Tensor:
        """M⁺, what the classifier sees, for the predicted class; for another one the same of its class map."""
        predicted = (label == output.logits.argmax(dim=1)).view(-1, 1, 1, 1)
        return self._mask(normalise_per_image(torch.where(predicted, output.terms["combined"], values)))

    @property
    def extractor(self) -> Backbone:
        """The localizer's."""
        return self.backbone if self.decodes else self.localizer

    @property
    def stride(self) -> int:
        """Of the localizer's maps."""
        return self.decoder.stride if self.decodes else self.localizer.stride

    def classify(self, image: Tensor, *, frozen: bool = False) -> Tensor:
        """Class scores (B, K) of a masked image; `frozen` keeps the gradient away from the classifier's parameters."""
        assert self.classifier_head is not None
        encoder = self.extractor if self.classifier is None else self.classifier
        if not frozen:
            return self.classifier_head(encoder(image))[0]
        features = functional_call(encoder, _detached(encoder), (image,))
        return functional_call(self.classifier_head, _detached(self.classifier_head), (features,))[0]


def _detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.named_parameters()}


def _check_empty_class(o: MaxMinOptions) -> None:
    if o.localizer == "decoder":
        need = "--localizer wildcat: the class comes from X+, and an image without ROI has none"
    elif o.background_trains == "localizer":
        need = "--background-trains both: the classifier learns the class without ROI from backgrounds"
    elif not o.localizer_weight:
        need = "a --localizer-weight above 0: the localizer gives the class, and it alone trains that"
    elif o.normalisation != "none":
        need = (
            "--normalisation none, as --recipe camelyon16-sem has it: a map that is stretched to [0, 1] in every image "
            "has ROI in every image"
        )
    else:
        return
    raise InputError(f"--empty-class needs {need}")
