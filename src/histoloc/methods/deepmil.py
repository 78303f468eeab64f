"""Deep MIL: the image is a bag of feature positions, and attention says which of them decide the class."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.maps import resize
from histoloc.methods.base import Method, Setting, class_map
from histoloc.types import Batch, BatchLocalization, Evidence, Output


@dataclass(frozen=True)
class DeepMilOptions:
    """Options of Deep MIL.

    Attributes:
        attention: class = one attention map and one linear classifier per class; shared = one attention map for all
            classes (the paper's form, published for two classes).
        gated: multiply the hidden units by a sigmoid gate (Eq. 9) instead of leaving them plain (Eq. 8).
        width: hidden units of the attention, L.
        normalisation: how attention becomes the ROI map: uniform (0.5 is the attention that every position would have
            if all were equal) or minmax (stretched to [0, 1] in every image).
    """

    attention: Literal["class", "shared"] = "class"
    gated: bool = False
    width: int = 128
    normalisation: Literal["uniform", "minmax"] = "uniform"


class DeepMil(Method):
    """Attention-based deep multiple instance learning (Ilse et al., ICML 2018, Eq. 7 to 9).

    The N positions of the feature map, h_1..h_N, are the instances of a bag. Attention weighs them, a linear
    classifier reads their weighted mean z:

        z = Σ a_i h_i                                                          (Eq. 7)
        a_i = exp(w · tanh(V h_i)) / Σ_j exp(w · tanh(V h_j))                  (Eq. 8)
        a_i = exp(w · [tanh(V h_i) ⊙ sigmoid(U h_i)]) / Σ_j exp(...)           (Eq. 9, gated)
        S_k = c_k · z_k + b_k

    With `attention = class` every class k has its own w, and so its own a and z; with `shared` all classes read the
    same z. The ROI evidence is the attention map of the predicted class (`shared`: the one map); it sums to one.

    Attention has a natural zero point, which min-max would lose: the uniform attention 1/N. The ROI map is therefore

        u = a N / (1 + a N)

    so that u >= 0.5 exactly where a >= 1/N, the rule by which masks were cut in earlier studies. (Their code for
    several classes compared with 1/(K N) instead, which is the threshold 1/(K + 1) on u.) The attention is resized
    before it is squashed, so that the rule holds for every pixel. An image of equal positions has u = 0.5 everywhere.
    `normalisation = minmax` treats attention as any other evidence.

    Attention maps of different classes each sum to one and are not comparable: there are no class maps here.
    """

    title: ClassVar[str] = "Deep MIL"
    paper: ClassVar[str] = "Ilse et al., Attention-based deep multiple instance learning, ICML 2018"
    Options: ClassVar[type[Any]] = DeepMilOptions
    options: DeepMilOptions

    def __init__(self, setting: Setting, options: DeepMilOptions) -> None:
        if options.width < 1:
            raise InputError(f"--width must be >= 1, not {options.width}; 128 is the default")
        super().__init__(setting, options)
        classes = len(setting.classes)
        self.backbone = setting.make_backbone(setting.backbone)
        maps = classes if options.attention == "class" else 1
        self.attention = Attention(self.backbone.channels, maps, width=options.width, gated=options.gated)
        self.head = nn.Conv2d(self.backbone.channels, classes, kernel_size=1)

    def forward(self, image: Tensor) -> Output:
        """Scores of the attended features, and one map per class, or one where shared.

        `terms["attention"]` is (B, K, h, w) or (B, 1, h, w), `terms["energy"]` the same before the softmax.
        """
        features = self.backbone(image)
        energy = self.attention.energies(features)
        attention = over_positions(energy)
        # As the weights sum to one, c · Σ a_i h_i + b = Σ a_i (c · h_i + b); the right side is summed in float32.
        logits = (attention * self.head(features).float()).sum(dim=(2, 3))
        roi = class_map(attention, logits) if self.options.attention == "class" else attention
        return Output(logits, roi, {"attention": attention, "energy": energy})

    def loss(self, out: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the image's class."""
        return {"classification": F.cross_entropy(out.logits, batch.label)}

    def evidence(self, image: Tensor) -> Evidence:
        """The attention's energies: what the softmax has not yet made to sum to one in every image."""
        out = self(image)
        return Evidence(out.logits.float().softmax(dim=1), out.terms["energy"].float())

    def localize(self, image: Tensor) -> BatchLocalization:
        """Class probabilities, and the attention of the predicted class as u = aN / (1 + aN)."""
        if self.options.normalisation == "minmax":
            return super().localize(image)
        out = self(image)
        ratio = resize(out.roi, (image.shape[-2], image.shape[-1])) * out.roi[0].numel()
        return BatchLocalization(out.logits.softmax(dim=1), ratio / (1 + ratio))


class Attention(nn.Module):
    """Attention over positions, Eq. 8 of Ilse et al. (2018), or Eq. 9 if gated.

    V and U have a bias; w has none, which the softmax would cancel.
    """

    def __init__(self, channels: int, maps: int, *, width: int, gated: bool) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(channels, width, kernel_size=1)
        self.gate = nn.Conv2d(channels, width, kernel_size=1) if gated else None
        self.energy = nn.Conv2d(width, maps, kernel_size=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> attention (B, maps, h, w) in float32 or better; each map is >= 0 and sums to one."""
        return over_positions(self.energies(features))

    def energies(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> logarithms of the attention up to a constant of the image, (B, maps, h, w)."""
        hidden = self.hidden(features).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(features).sigmoid()
        return self.energy(hidden)


def over_positions(energy: Tensor) -> Tensor:
    """Softmax over the positions of each map, (B, maps, h, w), in float32 or better."""
    precise = torch.promote_types(energy.dtype, torch.float32)
    return energy.flatten(2).softmax(dim=2, dtype=precise).view_as(energy)
