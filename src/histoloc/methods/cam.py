"""Class activation maps: one map per class, pooled to the class's score. GAP, max-pooling, LSE and WILDCAT."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from histoloc.errors import InputError
from histoloc.losses import classification
from histoloc.methods.base import Method, Setting
from histoloc.nn.pooling import WildcatHead, lse_score
from histoloc.types import Batch, Output


class ClassMapMethod(Method):
    """A classifier that scores each class by pooling the class's map; the class maps are the evidence."""

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        self.backbone = setting.make_backbone(setting.backbone)

    @abstractmethod
    def score(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) -> scores (B, K), class maps (B, K, h, w), both float32."""

    def forward(self, image: Tensor) -> Output:
        """Scores are the pooled class maps, which are the evidence (B, K, h, w)."""
        return Output(*self.score(self.backbone(image)), {})

    def loss(self, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy of the image's class."""
        return {"classification": classification(output.logits, batch)}


class Cam(ClassMapMethod):
    """A 1x1 convolution makes the class maps, M_k = w_k · h + b_k at every position."""

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        self.head = nn.Conv2d(self.backbone.channels, len(setting.classes), kernel_size=1)

    @abstractmethod
    def pool(self, maps: Tensor) -> Tensor:
        """Class maps (B, K, h, w) float32 -> scores (B, K)."""

    def score(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps by the head, scores by the pooling."""
        maps = self.head(features).float()
        return self.pool(maps), maps


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

    def pool(self, maps: Tensor) -> Tensor:
        """The maximum over positions."""
        return maps.amax(dim=(2, 3))


@dataclass(frozen=True)
class LseOptions:
    """Options of LSE.

    Attributes:
        r: sharpness of the pooling, > 0: towards 0 the score becomes the map's mean, towards infinity its maximum.
    """

    r: float = 10.0


class Lse(Cam):
    """Class maps by log-sum-exp pooling (Pinheiro and Collobert, CVPR 2015).

    A 1x1 convolution makes one map per class; the class score is a smooth maximum of the N positions:

        S_k = (1/r) log [(1/N) Σ_i exp(r M_k(i))]

    Every position has a gradient, in proportion to exp(r M_k(i)). The ROI map is the map of the predicted class.
    """

    title: ClassVar[str] = "CAM-LSE"
    paper: ClassVar[str] = "Pinheiro and Collobert, From image-level to pixel-level labeling, CVPR 2015"
    Options: ClassVar[type[Any]] = LseOptions
    options: LseOptions

    def __init__(self, setting: Setting, options: LseOptions) -> None:
        if not 0 < options.r < float("inf"):
            raise InputError(f"--r must be > 0 and finite, not {options.r}; 10 is the default")
        super().__init__(setting, options)

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

    modalities: int = 4
    kmax: float = 0.1
    kmin: float = 0.1
    alpha: float = 0.6
    dropout: float = 0.0


class Wildcat(ClassMapMethod):
    """WILDCAT: several maps per class, pooled over the highest and the lowest activations (Durand et al., CVPR 2017).

    A 1x1 convolution makes M maps per class, whose mean is the class map M_k (Eq. 1). Its score is the mean of the
    highest activations and, weighted by alpha, of the lowest, which are evidence against the class (Eq. 2):

        S_k = (1/k⁺) Σ (k⁺ highest of M_k) + α (1/k⁻) Σ (k⁻ lowest of M_k)

    The ROI map is the map of the predicted class.
    """

    title: ClassVar[str] = "WILDCAT"
    paper: ClassVar[str] = "Durand et al., WILDCAT: weakly supervised learning of deep ConvNets, CVPR 2017"
    Options: ClassVar[type[Any]] = WildcatOptions
    options: WildcatOptions

    def __init__(self, setting: Setting, options: WildcatOptions) -> None:
        _check_wildcat(options)
        super().__init__(setting, options)
        o = options
        self.head = WildcatHead(
            self.backbone.channels,
            len(setting.classes),
            modalities=o.modalities,
            kmax=o.kmax,
            kmin=o.kmin,
            alpha=o.alpha,
            dropout=o.dropout,
        )

    def score(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps and scores by the WILDCAT head."""
        return self.head(features)


def _check_wildcat(o: WildcatOptions) -> None:
    # Written so that NaN fails too.
    if not (o.kmax > 0 and o.kmin >= 0 and o.modalities >= 1):
        raise InputError("--kmax must be > 0, --kmin >= 0 and --modalities >= 1; correct them")
    if not (0 <= o.alpha < float("inf") and 0 <= o.dropout < 1):
        raise InputError("--alpha must be >= 0 and finite, and --dropout in [0, 1); correct them")
