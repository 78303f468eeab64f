"""Pooling of class maps into class scores."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from histoloc.maps import at_least_float32


def count_of(share: float, positions: int) -> int:
    """Number of positions meant by `share`: a fraction below one is rounded and at least 1; zero stays zero."""
    if share <= 0:
        return 0
    if share < 1:
        return max(1, math.floor(share * positions + 0.5))
    return min(round(share), positions)


def lse_score(maps: Tensor, r: float) -> Tensor:
    """Log-sum-exp pooling of Pinheiro and Collobert (2015): (1/r) log mean exp(r x), a smooth maximum.

    It lies between the mean (r towards 0) and the maximum (r towards infinity). The maximum is taken out of the
    exponential, so that no score is too large for it.

    Args:
        maps: (B, K, h, w) class maps.
        r: sharpness, > 0.

    Returns:
        (B, K) scores; float32 for lower precisions, else the input's type.
    """
    flat = at_least_float32(maps).flatten(2)
    # Detached: the score does not depend on what is taken out, and ties would share its gradient otherwise.
    highest = flat.detach().amax(dim=2, keepdim=True)
    return highest.squeeze(2) + (r * (flat - highest)).exp().mean(dim=2).log() / r


def wildcat_score(maps: Tensor, kmax: float, kmin: float, alpha: float, dropout: float = 0.0) -> Tensor:
    """WILDCAT pooling, Eq. 2 of Durand et al. (2017): mean of the kmax highest + alpha times that of the kmin lowest.

    Args:
        maps: (B, K, h, w) class maps.
        kmax: how many of the highest activations count; below 1 a share of the positions.
        kmin: the same for the lowest activations; 0 switches the term off.
        alpha: weight of the lowest activations.
        dropout: probability with which a selected activation is dropped (training only: pass 0 otherwise).

    Returns:
        (B, K) scores.
    """
    flat = maps.float().flatten(2)
    positions = flat.shape[2]
    highest = flat.topk(count_of(kmax, positions), dim=2).values
    score = F.dropout(highest, dropout, training=dropout > 0).mean(dim=2)
    lowest_count = count_of(kmin, positions)
    if lowest_count and alpha:
        lowest = flat.topk(lowest_count, dim=2, largest=False).values
        score = score + alpha * F.dropout(lowest, dropout, training=dropout > 0).mean(dim=2)
    return score


class WildcatHead(nn.Module):
    """1x1 convolution to K·M maps, mean over the M modalities, WILDCAT pooling (Durand et al., 2017).

    `options` has `modalities`, `kmax`, `kmin`, `alpha` and `dropout`.
    """

    def __init__(self, channels: int, classes: int, options: Any) -> None:
        super().__init__()
        self.options = options
        self.maps = nn.Conv2d(channels, classes * options.modalities, kernel_size=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) -> scores (B, K), class maps (B, K, h, w), both float32."""
        o = self.options
        maps = self.maps(features).float().unflatten(1, (-1, o.modalities)).mean(dim=2)
        return wildcat_score(maps, o.kmax, o.kmin, o.alpha, o.dropout if self.training else 0.0), maps
