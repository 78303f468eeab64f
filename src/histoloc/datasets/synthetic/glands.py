"""Where the glands of a synthetic image lie, and what lies inside them: geometry only, no colour.

A gland is a level set. Every gland gives each pixel a signed distance (in pixels, negative inside) to its
own ellipse, measured in warped coordinates; the nearest gland owns the pixel, and a gap is kept where two
glands are about equally near. Cutting that field at the right quantile gives the wanted share of gland area.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from skimage import measure
from skimage.segmentation import relabel_sequential

Label = Literal["benign", "malignant"]
Field = NDArray[np.floating]

AREA_RANGE = (0.35, 0.6)  # share of gland pixels, the same uniform distribution for both classes
SMALLEST_GLAND = 150  # pixels; smaller pieces that the level set leaves are given back to the stroma


@dataclass(frozen=True)
class Architecture:
    """How the glands of one class are built; lengths in pixels, ranges are drawn from uniformly."""

    spacing: tuple[float, float]  # between neighbouring glands, per image
    disorder: float  # jitter of the gland centres, as a share of the spacing
    size_spread: float  # standard deviation of the logarithm of the glands' radii
    gap: tuple[float, float]  # stroma kept between two glands; negative: they touch, per image
    warp: tuple[tuple[float, float], ...]  # (smoothness, amplitude) of each octave of the contours' irregularity
    gap_spread: float = 0.0  # how much the gap varies within an image
    fused: float = 0.0  # share of glands that are one with a neighbour
    stretch: tuple[float, float] = (1.0, 1.55)  # of the whole layout along one direction, per image


ARCHITECTURES: dict[Label, Architecture] = {
    "benign": Architecture(spacing=(62, 92), disorder=0.09, size_spread=0.06, gap=(7, 15), warp=((24, 3.0), (7, 0.7))),
    "malignant": Architecture(
        spacing=(58, 92),
        disorder=0.28,
        size_spread=0.3,
        gap=(-1, 5),
        warp=((22, 9.0), (9, 3.5), (3.5, 1.0)),
        gap_spread=3.5,
        fused=0.45,
    ),
}


@dataclass(frozen=True, eq=False)
class Glands:
    """The glands of one image, all arrays (H, W).

    Attributes:
        instances: int32, 0 = stroma, 1.. = gland.
        depth: float32, distance in pixels to the gland's own border, 0 in stroma.
        reach: float32, the greatest depth of the gland that owns the pixel, 0 in stroma.
    """

    instances: NDArray[np.int32]
    depth: Field
    reach: Field


def noise(
    rng: np.random.Generator, shape: tuple[int, int], along: float, across: float | None = None, angle: float = 0.0
) -> Field:
    """Gaussian noise of zero mean and unit variance, smoothed by a Gaussian.

    Args:
        rng: the source of randomness.
        shape: (H, W) of the field.
        along: standard deviation of the smoothing kernel in pixels, along `angle`.
        across: the same across `angle`; equal to `along` when None.
        angle: direction of the long axis, radians from the x axis.

    Returns:
        (H, W) float32.
    """
    across = along if across is None else across
    reach = int(3 * max(along, across))  # cut off again, so that the field is not periodic
    rows = int(fft.next_fast_len(shape[0] + reach) or 0)
    columns = int(fft.next_fast_len(shape[1] + reach, real=True) or 0)
    # White noise is white in every basis: its spectrum is drawn, only where the kernel lets it through.
    fy, fx = (f.astype(np.float32) for f in (fft.fftfreq(rows), fft.rfftfreq(columns)))
    highest = 0.8 / min(along, across)
    low = np.ix_(np.abs(fy) <= highest, fx <= highest)
    fy, fx = fy[low[0]], fx[low[1]]
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    power = (along * (fx * cos + fy * sin)) ** 2 + (across * (fy * cos - fx * sin)) ** 2
    gain = np.exp(-2 * float(np.pi) ** 2 * power)
    gain[0, 0] = 0.0
    white = rng.standard_normal((gain.shape[0], 2 * gain.shape[1]), dtype=np.float32).view(np.complex64)
    spectrum = np.zeros((rows, columns // 2 + 1), dtype=np.complex64)
    spectrum[low] = white * gain
    field = np.asarray(fft.irfft2(spectrum, s=(rows, columns)), dtype=np.float32)
    field = field / max(float(field.std()), 1e-12)  # over the whole period: the window may lie high or low
    return field[: shape[0], : shape[1]]


def _centres(
    rng: np.random.Generator, plan: Architecture, shape: tuple[int, int], spacing: float, stretch: float
) -> NDArray[np.float64]:
    """(N, 2) jittered hexagonal sites (x, y) over a box that holds the rotated, stretched image."""
    half = 0.5 * float(np.hypot(*shape)) * stretch + spacing
    rows = np.arange(-half, half, spacing * np.sqrt(3) / 2)
    columns = np.arange(-half, half, spacing)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + (np.arange(len(rows)) % 2)[:, None] * spacing / 2
    sites = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.5, 0.5, 2) * spacing
    return sites + rng.normal(0, plan.disorder * spacing, sites.shape)


def _distances(
    rng: np.random.Generator, plan: Architecture, shape: tuple[int, int], target: float
) -> tuple[Field, NDArray[np.int32]]:
    """The field whose low values are gland (H, W), and which gland owns each pixel (H, W)."""
    height, width = shape
    spacing = rng.uniform(*plan.spacing)
    gap = rng.uniform(*plan.gap)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(*plan.stretch)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for smoothness, amplitude in plan.warp:
        x = x + np.float32(amplitude) * noise(rng, shape, smoothness)
        y = y + np.float32(amplitude) * noise(rng, shape, smoothness)
    x, y = x - width / 2, y - height / 2
    # Crypts cut obliquely are ellipses along one direction, so the whole layout is squeezed, not each gland.
    cos, sin, squeeze = (np.float32(f) for f in (np.cos(angle), np.sin(angle), np.sqrt(stretch)))
    u, v = (x * cos + y * sin) / squeeze, (y * cos - x * sin) * squeeze
    sites = _centres(rng, plan, shape, spacing, np.sqrt(stretch))
    sites = sites[rng.random(len(sites)) < max(0.55, target / 0.6)]
    sites = sites[(np.abs(sites) < [np.abs(u).max() + spacing, np.abs(v).max() + spacing]).all(axis=1)]
    radii = 0.42 * spacing * np.exp(rng.normal(0, plan.size_spread, len(sites)))
    owners = np.arange(len(sites))
    for i in np.flatnonzero(rng.random(len(sites)) < plan.fused):
        owners[i] = owners[np.argsort(((sites - sites[i]) ** 2).sum(1))[min(1, len(sites) - 1)]]
    first, second = np.full((2, *shape), np.inf, dtype=np.float32)
    owner = np.full(shape, -1, dtype=np.int32)
    sites, radii = sites.astype(np.float32), radii.astype(np.float32)
    for site, radius, identity in zip(sites, radii, owners, strict=True):
        aspect = np.float32(np.exp(rng.normal(0, 0.08)))
        distance = np.sqrt(((u - site[0]) * aspect) ** 2 + ((v - site[1]) / aspect) ** 2) - radius
        np.minimum(second, np.maximum(first, distance), out=second, where=owner != identity)
        owner[distance < first] = identity
        np.minimum(first, distance, out=first)
    clearance = gap + plan.gap_spread * noise(rng, shape, 14) if plan.gap_spread else gap
    return np.maximum(first, first + clearance - (second - first)), owner


def _seams(owner: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels (H, W) whose neighbour to the right or below belongs to another gland."""
    seams = np.zeros(owner.shape, dtype=bool)
    seams[:-1] |= owner[1:] != owner[:-1]
    seams[:, :-1] |= owner[:, 1:] != owner[:, :-1]
    return seams


def _pieces(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the connected pieces of a mask (H, W) 1.., leaving out those that are too small for a gland."""
    pieces = np.asarray(measure.label(mask, connectivity=1))
    pieces[np.bincount(pieces.ravel())[pieces] < SMALLEST_GLAND] = 0
    return relabel_sequential(pieces)[0].astype(np.int32)


def lay_out(rng: np.random.Generator, label: Label, shape: tuple[int, int], margin: int) -> Glands:
    """Lay out the glands of one image.

    Args:
        rng: the source of randomness.
        label: the class, which decides the architecture.
        shape: (H, W) of the canvas, margin included.
        margin: pixels on each side that are cut off later; the share of gland area is met within them.

    Returns:
        The glands over the whole canvas.
    """
    target = rng.uniform(*AREA_RANGE)
    return arrange(rng, ARCHITECTURES[label], shape, margin, target)


def arrange(
    rng: np.random.Generator,
    plan: Architecture,
    shape: tuple[int, int],
    margin: int,
    target: float,
    free: NDArray[np.bool_] | None = None,
) -> Glands:
    """Lay out glands of one architecture.

    Args:
        rng: the source of randomness.
        plan: the architecture.
        shape: (H, W) of the canvas, margin included.
        margin: pixels on each side that are cut off later.
        target: share of gland within them, in (0, 1), where glands may be.
        free: (H, W), where glands may be; everywhere by default.

    Returns:
        The glands over the whole canvas.
    """
    field, owner = _distances(rng, plan, shape, target)
    if free is not None:
        field[~free] = np.inf
    visible = field[margin:-margin, margin:-margin]
    visible = visible[np.isfinite(visible)]
    inside = field < np.quantile(visible, target) if visible.size else np.zeros(shape, dtype=bool)
    inside |= ~(_pieces(~inside) > 0)  # a lake too small to be stroma
    instances = _pieces(inside & ~_seams(owner))
    depth = np.asarray(ndimage.distance_transform_edt(instances > 0), dtype=np.float32)
    reach = ndimage.maximum(depth, instances, np.arange(instances.max() + 1)).astype(np.float32)
    return Glands(instances, depth, reach[instances])
