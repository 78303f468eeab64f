"""What the tissue of a synthetic image is made of: maps of the two stains, before colour.

Amounts of stain are optical densities (base 10) of the reference strength; zero is glass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from histoloc.datasets.synthetic.glands import Field, Glands, Label, noise


def splat(
    shape: tuple[int, int],
    centres: NDArray,
    radii: NDArray,
    angles: NDArray,
    weights: NDArray,
    hollow: float = 0.0,
    window: int = 8,
) -> Field:
    """Draw soft ellipses and keep the greatest weight at each pixel.

    Args:
        shape: (H, W) of the map.
        centres: (N, 2) x, y in pixels.
        radii: (N, 2) half axes in pixels, along and across `angles`.
        angles: (N,) radians from the x axis.
        weights: (N,) value inside.
        hollow: by how much the centre is weaker than the rim, as a share of the weight.
        window: half side of the square in which an ellipse is drawn, pixels.

    Returns:
        (H, W) float32, zero where there is no ellipse.
    """
    canvas = np.zeros(shape, dtype=np.float32)
    corner = np.rint(centres).astype(np.int64)
    dy, dx = np.mgrid[-window : window + 1, -window : window + 1].astype(np.float32)
    offset = (centres - corner).astype(np.float32)
    x, y = dx[None] - offset[:, 0, None, None], dy[None] - offset[:, 1, None, None]
    cos, sin = (f(angles).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    a, b = (radii[:, i].astype(np.float32)[:, None, None] for i in (0, 1))
    distance = np.sqrt(((x * cos + y * sin) / a) ** 2 + ((y * cos - x * sin) / b) ** 2)
    value = np.clip((1 - distance) * np.minimum(a, b) + 0.5, 0, 1) * weights.astype(np.float32)[:, None, None]
    value *= 1 - np.float32(hollow) * np.clip(1 - distance, 0, 1)
    column, row = (corner[:, i, None, None] + d.astype(np.int64) for i, d in enumerate((dx, dy)))
    valid = (value > 0) & (column >= 0) & (row >= 0) & (column < shape[1]) & (row < shape[0])
    np.maximum.at(canvas.reshape(-1), (row * shape[1] + column)[valid], value[valid])
    return canvas


def _along(rng: np.random.Generator, field: Field, level: float, spacing: float) -> tuple[NDArray, NDArray]:
    """Points (N, 2) as x, y every `spacing` pixels along a level line, and its direction there (N,)."""
    points, angles = [np.zeros((0, 2))], [np.zeros(0)]
    for line in measure.find_contours(field, level):
        step = np.hypot(*np.diff(line, axis=0).T)
        length = np.concatenate([[0.0], np.cumsum(step)])
        number = int(length[-1] / spacing)
        if number < 2:
            continue
        at = (np.arange(number) + rng.random() + rng.normal(0, 0.1, number)) * length[-1] / number
        position, ahead = (
            np.stack([np.interp(t, length, line[:, axis]) for axis in (1, 0)], axis=1) for t in (at, at + 2)
        )
        points.append(position)
        angles.append(np.arctan2(*(ahead - position).T[::-1]))
    return np.concatenate(points), np.concatenate(angles)


def scatter(rng: np.random.Generator, density: Field) -> NDArray:
    """Points (N, 2) as x, y drawn with the expected number `density` per pixel."""
    y, x = np.nonzero(rng.random(density.shape, dtype=np.float32) < density)
    return np.stack([x, y], axis=1) + rng.uniform(-0.5, 0.5, (len(x), 2))


def _stroma(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Field, Field]:
    """Haematoxylin and eosin of connective tissue over the whole canvas; knows nothing of the class."""
    strands, flow = fibres(rng, shape, rng.uniform(0, np.pi))
    patches = noise(rng, shape, 14)
    eosin = 0.25 + 0.055 * strands + 0.05 * patches + 0.025 * noise(rng, shape, 0.8)
    loose = rng.uniform(1.0, 2.4)  # clefts between the fibres, where glass shows
    eosin *= 1 - np.clip((-strands - 0.7 * patches - loose) * 1.6, 0, 0.9)
    haematoxylin = 0.055 + 0.015 * strands + 0.015 * noise(rng, shape, 1.5)
    nuclei = np.maximum(_fibroblasts(rng, shape, flow), _lymphocytes(rng, shape))
    vessels = np.clip(noise(rng, shape, 7) - rng.uniform(1.6, 2.6), 0, 1)
    cells = scatter(rng, 0.05 * vessels)
    n = len(cells)
    blood = splat(shape, cells, rng.uniform(1.8, 2.6, (n, 2)), np.zeros(n), rng.uniform(0.3, 0.5, n), hollow=0.3)
    return haematoxylin + nuclei, np.clip(eosin + 0.1 * nuclei + blood, 0, None)


def fibres(rng: np.random.Generator, shape: tuple[int, int], angle: float) -> tuple[Field, Field]:
    """Strands along `angle` that bend: their density (H, W), about 0 +- 1, and their direction (H, W) in radians."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    bend = 10 * noise(rng, shape, 22), 10 * noise(rng, shape, 22)
    strands = 0.7 * noise(rng, shape, 12, 1.2, angle) + 0.5 * noise(rng, shape, 5, 0.8, angle)
    strands = ndimage.map_coordinates(strands, [y + bend[0], x + bend[1]], order=1, mode="mirror")
    return strands, angle + 0.03 * bend[0]


def _fibroblasts(rng: np.random.Generator, shape: tuple[int, int], flow: Field) -> Field:
    """Sparse spindle nuclei that lie along `flow` (H, W), radians."""
    centres = scatter(rng, np.full(shape, rng.uniform(0.0012, 0.0035), dtype=np.float32))
    at = np.clip(np.rint(centres).astype(int), 0, np.array(shape[::-1]) - 1)
    n = len(centres)
    radii = np.stack([rng.uniform(3.0, 6.0, n), rng.uniform(0.9, 1.7, n)], axis=1)
    angles = flow[at[:, 1], at[:, 0]] + rng.normal(0, 0.3, n)
    return splat(shape, centres, radii, angles, rng.uniform(0.25, 0.55, n))


def _lymphocytes(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """Small round dark nuclei, in crowds."""
    crowd = np.clip(1 + 1.2 * noise(rng, shape, 20), 0.05, None)
    centres = scatter(rng, rng.uniform(0.001, 0.008) * crowd)
    n = len(centres)
    radii = rng.uniform(1.9, 2.8, (n, 1)) * rng.uniform(0.85, 1.15, (n, 2))
    return splat(shape, centres, radii, rng.uniform(0, np.pi, n), rng.uniform(0.4, 0.75, n), hollow=0.2)


def _benign(rng: np.random.Generator, glands: Glands) -> tuple[Field, Field]:
    """Goblet cells around a clear lumen, one regular row of nuclei at the border."""
    shape, depth = glands.depth.shape, glands.depth
    relative = depth / np.maximum(glands.reach, 1)
    lumen = np.clip((relative - rng.uniform(0.62, 0.85) + 0.05 * noise(rng, shape, 4)) * 10, 0, 1)
    haematoxylin = 0.19 + 0.04 * noise(rng, shape, 2.0)
    eosin = 0.22 + 0.03 * noise(rng, shape, 3)
    mucin = np.zeros(shape, dtype=np.float32)
    size, fill = rng.uniform(3.0, 4.6), rng.uniform(0.4, 0.75)
    for row in range(5):
        centres, angles = _along(rng, depth, 10.5 + row * 1.9 * size, 2.2 * size)
        n = len(centres)
        centres = centres + rng.normal(0, 0.9, (n, 2))
        radii = size * rng.uniform(0.7, 1.15, (n, 2)) * [0.9, 1.15]
        mucin = np.maximum(mucin, splat(shape, centres, radii, angles, rng.uniform(0.6, 1.0, n)))
    pale = np.maximum(mucin * fill, lumen * 0.93)
    haematoxylin, eosin = haematoxylin * (1 - pale), eosin * (1 - pale)
    centres, angles = _along(rng, depth, 4.8, rng.uniform(3.9, 4.8))
    n = len(centres)
    centres = centres + rng.normal(0, 0.6, (n, 2))
    radii = np.stack([rng.uniform(1.6, 2.2, n), rng.uniform(2.9, 4.2, n)], axis=1)
    angles = angles + rng.normal(0, 0.12, n)
    nuclei = splat(shape, centres, radii, angles, rng.uniform(0.4, 0.65, n), hollow=0.35)
    nuclei *= 1 + 0.15 * noise(rng, shape, 0.8)
    base = np.clip(1 - np.abs(depth - 4.5) / 6, 0, 1)  # the cells' dense foot, between and around the nuclei
    return haematoxylin + 0.12 * base + 0.9 * nuclei, eosin + 0.15 * nuclei


def _malignant(rng: np.random.Generator, glands: Glands) -> tuple[Field, Field]:
    """Stratified, large, uneven nuclei; lumens that are slits, many, or absent, with debris."""
    shape, depth = glands.depth.shape, glands.depth
    wall = rng.uniform(13, 19) + 3 * noise(rng, shape, 12)
    holes = noise(rng, shape, rng.uniform(5, 9), rng.uniform(3.5, 5), rng.uniform(0, np.pi))
    lumen = np.clip(np.minimum((depth - wall) * 0.6, (holes - rng.uniform(-1.5, 0.0)) * 4), 0, 1)
    haematoxylin = 0.19 + 0.04 * noise(rng, shape, 2.0)
    eosin = 0.26 + 0.04 * noise(rng, shape, 3)
    nuclei = _stratified(rng, depth, lumen) * (1 + 0.22 * noise(rng, shape, 0.9))
    debris = np.clip(noise(rng, shape, 9) - rng.uniform(-0.3, 1.2), 0, 1)
    debris *= np.clip(noise(rng, shape, 1.2) + 0.7, 0, 1.5)
    specks = scatter(rng, 0.04 * debris)
    n = len(specks)
    dust = splat(shape, specks, rng.uniform(0.8, 2.0, (n, 2)), np.zeros(n), rng.uniform(0.3, 0.7, n))
    keep = 1 - 0.96 * lumen
    haematoxylin = (haematoxylin + 0.9 * nuclei) * keep + lumen * (dust + 0.05 * debris)
    return haematoxylin, (eosin + 0.15 * nuclei) * keep + lumen * debris * 0.3


def _stratified(rng: np.random.Generator, depth: Field, lumen: Field) -> Field:
    """Crowded nuclei in many rows, up to a band of bare cytoplasm around every lumen."""
    apical = np.asarray(ndimage.distance_transform_edt(lumen < 0.5), dtype=np.float32)
    bare, spacing = rng.uniform(2.5, 5.5), rng.uniform(5.4, 6.8)
    rows = [_along(rng, depth, 3.6 + 5.6 * row, spacing) for row in range(8)]
    centres, angle = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    centres = centres + rng.normal(0, 1.4, centres.shape)
    index = np.clip(np.rint(centres).astype(int), 0, np.array(depth.shape[::-1]) - 1)
    inside = apical[index[:, 1], index[:, 0]] > bare
    centres, angle = centres[inside], angle[inside]
    n = len(centres)
    scale = np.exp(rng.normal(0.05, 0.2, n))[:, None]
    radii = scale * np.stack([rng.uniform(1.9, 3.0, n), rng.uniform(2.8, 4.4, n)], axis=1)
    angle = angle + rng.normal(0, 0.4, n)
    return splat(depth.shape, centres, radii, angle, rng.uniform(0.28, 0.65, n), hollow=0.45)


def paint_epithelium(rng: np.random.Generator, label: Label, glands: Glands) -> tuple[Field, Field]:
    """Haematoxylin and eosin, each (H, W), that the class has within its glands."""
    return _benign(rng, glands) if label == "benign" else _malignant(rng, glands)


def paint(rng: np.random.Generator, label: Label, glands: Glands) -> tuple[Field, Field]:
    """Fill stroma and glands with tissue.

    Args:
        rng: the source of randomness.
        label: the class, which decides what the glands, and only the glands, are filled with.
        glands: where they lie, (H, W).

    Returns:
        Haematoxylin and eosin, each (H, W) float32, >= 0.
    """
    shape = glands.depth.shape
    inside = np.clip(ndimage.gaussian_filter((glands.instances > 0).astype(np.float32), 0.6), 0, 1)
    outer = _stroma(rng, shape)
    inner = paint_epithelium(rng, label, glands)
    mixed = [o * (1 - inside) + i * inside for o, i in zip(outer, inner, strict=True)]
    return np.clip(mixed[0], 0, None), np.clip(mixed[1], 0, None)
