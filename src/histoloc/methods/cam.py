"""Class activation maps: one map per class, pooled to the class's score. GAP, max-pooling, LSE and WILDCAT."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from histoloc.bounds import Count, NotNegative, PartBelowOne, Positive
from histoloc.methods.base import Classifier, Setting
from histoloc.nn.pooling import WildcatHead, lse_score
from histoloc.types import Output


class Cam(Classifier):
    """A 1x1 convolution makes the class maps, M_k = w_k · h + b_k at every position; a score is the pooled map."""

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        self.head = nn.Conv2d(self.backbone.channels, len(setting.classes), kernel_size=1)

    @abstractmethod
    def pool(self, maps: Tensor) -> Tensor:
        """Class maps (B, K, h, w) float32 -> scores (B, K)."""

    def forward(self, image: Tensor) -> Output:
        """Scores are the pooled class maps, which are the evidence (B, K, h, w)."""
        maps = self.head(self.backbone(image)).float()
        return Output(self.pool(maps), maps, {})


class Gap(Cam):
    """Class activation maps by global average pooling (Zhou et al., CVPR 2016, Eq. 2).

    A 1x1 convolution makes one map per class; the class score is the map's mean, which equals a linear classifier on
    averaged features:

        S_k = (1/N) Σ_i M_k(i), i = 1..N the positions

    The ROI map is the map of the predicted class.
    """

    title: ClassVar[str] = "GAP"
    paper: ClassVar[str] = "Zhou et al., Learning deep features for discriminative localization, CVPR 2016"

    def pool(self, maps: Tensor) -> Tensor:
        """The mean over positions."""
        return maps.mean(dim=(2, 3))


class MaxPool(Cam):
    """Class maps by max-pooling (Oquab et al., CVPR 2015).

    A 1x1 convolution makes one map per class; the class score is the map's highest value:

        S_k = max_i M_k(i)

    Only the highest position of a map has a gradient, so that the map need not cover the object. The ROI map is the
    map of the predicted class.
    """

    title: ClassVar[str] = "Max-pooling"
    paper: ClassVar[str] = "Oquab et al., Is object localization for free?, CVPR 2015"
    highest_lr: ClassVar[float] = 1e-3  # the whole gradient goes to few positions

    def pool(self, maps: Tensor) -> Tensor:
        """The maximum over positions."""
        return maps.amax(dim=(2, 3))


@dataclass(frozen=True)
class LseOptions:
    """Options of LSE.

    Attributes:
        r: sharpness of the pooling, > 0: towards 0 the score becomes the map's mean, towards infinity its maximum.
    """

    r: Positive = 10.0


class Lse(Cam):
    """Class maps by log-sum-exp pooling (Pinheiro and Collobert, CVPR 2015).

    A 1x1 convolution makes one map per class; the class score is a smooth maximum of the N positions:

        S_k = (1/r) log [(1/N) Σ_i exp(r M_k(i))]

    Every position has a gradient, in proportion to exp(r M_k(i)). The ROI map is the map of the predicted class.
    """

    title: ClassVar[str] = "CAM-LSE"
    paper: ClassVar[str] = "Pinheiro and Collobert, From image-level to pixel-level labeling, CVPR 2015"
    highest_lr: ClassVar[float] = 1e-3
    options: LseOptions

    def pool(self, maps: Tensor) -> Tensor:
        """The smooth maximum over positions."""
        return lse_score(maps, self.options.r)


@dataclass(frozen=True)
class WildcatOptions:
    """Options of WILDCAT.

    Attributes:
        modalities: maps per class, M.
        kmax: how many of the highest activations count: below 1 a share of the positions, from 1 up their number
            (1 is the maximum alone).
        kmin: how many of the lowest activations count, likewise; 0 switches them off.
        alpha: weight of the lowest activations.
        dropout: dropout on the selected activations in training.
    """

    modalities: Count = 4
    kmax: Positive = 0.1
    kmin: NotNegative = 0.1
    alpha: NotNegative = 0.6
    dropout: PartBelowOne = 0.0


class Wildcat(Classifier):
    """WILDCAT: several maps per class, pooled over the highest and the lowest activations (Durand et al., CVPR 2017).

    A 1x1 convolution makes M maps per class, whose mean is the class map M_k (Eq. 1). Its score is the mean of the
    highest activations and, weighted by alpha, of the lowest, which are evidence against the class (Eq. 2):

        S_k = (1/k⁺) Σ (k⁺ highest of M_k) + α (1/k⁻) Σ (k⁻ lowest of M_k)

    The ROI map is the map of the predicted class.
    """

    title: ClassVar[str] = "WILDCAT"
    paper: ClassVar[str] = "Durand et al., WILDCAT: weakly supervised learning of deep ConvNets, CVPR 2017"
    options: WildcatOptions

    def __init__(self, setting: Setting, options: WildcatOptions) -> None:
        super().__init__(setting, options)
        self.head = WildcatHead(self.backbone.channels, len(setting.classes), options)

    def forward(self, image: Tensor) -> Output:
        """Scores and class maps by the WILDCAT head; the maps are the evidence (B, K, h, w)."""
        logits, maps = self.head(self.backbone(image))
        return Output(logits, maps, {})
