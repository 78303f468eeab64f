"""Deep MIL: the image is a bag of feature positions, and attention says which of them decide the class."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from histoloc.bounds import Count
from histoloc.maps import at_least_float32, normalise_per_image
from histoloc.methods.base import Classifier, Setting
from histoloc.types import Output


@dataclass(frozen=True)
class DeepMilOptions:
    """Options of Deep MIL.

    Attributes:
        attention: class = one attention map and one linear classifier per class; shared = one attention map for all
            classes (the paper's form, published for two classes).
        gated: multiply the hidden units by a sigmoid gate (Eq. 9) instead of leaving them plain (Eq. 8).
        width: hidden units of the attention, L.
        normalisation: how attention becomes the map of `--range image`: uniform (0.5 is the attention that every
            position would have if all were equal) or minmax (stretched to [0, 1] in every image).
    """

    attention: Literal["class", "shared"] = "class"
    gated: bool = False
    width: Count = 128
    normalisation: Literal["uniform", "minmax"] = "uniform"


class DeepMil(Classifier):
    """Attention-based deep multiple instance learning (Ilse et al., ICML 2018, Eq. 7 to 9).

    The N positions of the feature map, h_1..h_N, are the instances of a bag. Attention weighs them, a linear
    classifier reads their weighted mean z:

        z = Σ a_i h_i                                                          (Eq. 7)
        a_i = exp(w · tanh(V h_i)) / Σ_j exp(w · tanh(V h_j))                  (Eq. 8)
        a_i = exp(w · [tanh(V h_i) ⊙ sigmoid(U h_i)]) / Σ_j exp(...)           (Eq. 9, gated)
        S_k = c_k · z_k + b_k

    With `attention = class` every class k has its own w, and so its own a and z; with `shared` all classes read the
    same z. The evidence for the ROI is what the softmax has not yet made to sum to one, the energy w · tanh(V h_i) of
    the predicted class (`shared`: the one there is): it can be compared between images and tiles.

    The papers' rule per image (`--range image`) cuts the attention. It has a natural zero point, which min-max would
    lose: the uniform attention 1/N. That map is therefore

        u = a N / (1 + a N)

    so that u >= 0.5 exactly where a >= 1/N, the rule by which masks were cut in earlier studies. (Their code for
    several classes compared with 1/(K N) instead, which is the threshold 1/(K + 1) on u.) An image of equal positions
    has u = 0.5 everywhere. `normalisation = minmax` treats attention as any other evidence.
    """

    title: ClassVar[str] = "Deep MIL"
    paper: ClassVar[str] = "Ilse et al., Attention-based deep multiple instance learning, ICML 2018"
    options: DeepMilOptions

    def __init__(self, setting: Setting, options: DeepMilOptions) -> None:
        super().__init__(setting, options)
        classes = len(setting.classes)
        maps = classes if options.attention == "class" else 1
        self.attention = Attention(self.backbone.channels, maps, width=options.width, gated=options.gated)
        self.head = nn.Conv2d(self.backbone.channels, classes, kernel_size=1)

    def forward(self, image: Tensor) -> Output:
        """Scores of the attended features; the evidence is the energy, (B, K, h, w), or (B, 1, h, w) where shared."""
        features = self.backbone(image)
        energy = self.attention(features)
        attention = over_positions(energy)
        # As the weights sum to one, c · Σ a_i h_i + b = Σ a_i (c · h_i + b); the right side is summed in float32.
        logits = (attention * self.head(features).float()).sum(dim=(2, 3))
        return Output(logits, energy.float(), {})

    def image_map(self, output: Output, values: Tensor, label: Tensor) -> Tensor:
        """The map aN / (1 + aN), a the attention over the image's N positions; min-max where the option says so."""
        if self.options.normalisation == "minmax":
            return normalise_per_image(over_positions(values))
        log_mean = values.logsumexp(dim=(2, 3), keepdim=True) - math.log(values.shape[-2] * values.shape[-1])
        return (values - log_mean).sigmoid()


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
        """Features (B, C, h, w) -> logarithms of the attention up to a constant of the image, (B, maps, h, w)."""
        hidden = self.hidden(features).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(features).sigmoid()
        return self.energy(hidden)


def over_positions(energy: Tensor) -> Tensor:
    """Softmax over the positions of each map, (B, maps, h, w), in float32 or better."""
    return at_least_float32(energy).flatten(2).softmax(dim=2).view_as(energy)
