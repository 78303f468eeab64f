"""Cues: rules about tissue that anybody can state, which break a tie that labels alone leave."""

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import reconstruction
from torch import Tensor

from histoloc.methods.stain import haematoxylin, smooth

# Pixels of the network's input; chosen at 1.5 µm/px.
_LUMENS = (60, 9000)  # smallest and largest area of a lumen
_NEAR = 12.0  # distance from a lumen at which its cue has fallen to 1/e
_NUCLEI = 4.0  # standard deviation of the Gaussian that smooths haematoxylin
_TINY = 1e-6


def nuclei_around_lumens(rgb: Tensor) -> Tensor:
    """Glands: nuclei that lie around a bright lumen, and what they enclose.

    The sum of two contrasts, each standardised over the image: the smoothed amount of haematoxylin, and exp(-d / 12)
    where d is the distance in pixels from the nearest bright area of 60 to 9,000 pixels. What is lower than all ways
    out of it to the image's edge is filled up to the lowest of these.

    Args:
        rgb: (3, H, W) in [0, 1].

    Returns:
        (1, 1, H, W); zeros where an image has no contrast.
    """
    nuclei = smooth(haematoxylin(rgb[None]), _NUCLEI)
    darkest = ndimage.gaussian_filter(rgb.amin(dim=0).cpu().numpy().astype(np.float64), 1)
    areas, _ = ndimage.label(darkest > (np.median(darkest) + darkest.max()) / 2)
    sizes = np.bincount(areas.ravel())
    lumens = ((sizes >= _LUMENS[0]) & (sizes <= _LUMENS[1]))[areas] & (areas > 0)
    near = np.exp(-ndimage.distance_transform_edt(~lumens) / _NEAR) if lumens.any() else np.zeros(lumens.shape)
    both = standardised(nuclei) + standardised(torch.from_numpy(near)[None, None].to(nuclei))
    values = both[0, 0].cpu().numpy()
    edge = np.full_like(values, values.max())
    edge[[0, -1]], edge[:, [0, -1]] = values[[0, -1]], values[:, [0, -1]]
    return torch.from_numpy(reconstruction(edge, values, method="erosion")).to(nuclei)[None, None]


def standardised(map: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 in every image (B, 1, H, W); zeros where an image's map is constant."""
    map = map - map.mean(dim=(-2, -1), keepdim=True)
    spread = map.std(dim=(-2, -1), keepdim=True, correction=0)
    return torch.where(spread > _TINY, map / spread.clamp_min(_TINY), torch.zeros_like(map))
