"""What the tissue of a synthetic image is made of: maps of the two stains, before colour.

Amounts of stain are optical densities (base 10) of the reference strength; zero is glass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from histoloc.data.glands import Field, Glands, Label, noise

_WINDOW = 8  # half side of the square in which a nucleus or a vacuole is drawn, pixels


def _splat(shape: tuple[int, int], centres: NDArray, radii: NDArray, angles: NDArray, weights: NDArray) -> Field:
    """Draw soft ellipses and keep the greatest weight at each pixel.

    Args:
        shape: (H, W) of the map.
        centres: (N, 2) x, y in pixels.
        radii: (N, 2) half axes in pixels, along and across `angles`.
        angles: (N,) radians from the x axis.
        weights: (N,) value inside.

    Returns:
        (H, W) float32, zero where there is no ellipse.
    """
    canvas = np.zeros(shape, dtype=np.float32)
    if not len(centres):
        return canvas
    corner = np.rint(centres).astype(np.int64)
    dy, dx = np.mgrid[-_WINDOW : _WINDOW + 1, -_WINDOW : _WINDOW + 1].astype(np.float32)
    offset = (centres - corner).astype(np.float32)
    x, y = dx[None] - offset[:, 0, None, None], dy[None] - offset[:, 1, None, None]
    cos, sin = (f(angles).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    a, b = (radii[:, i].astype(np.float32)[:, None, None] for i in (0, 1))
    distance = np.sqrt(((x * cos + y * sin) / a) ** 2 + ((y * cos - x * sin) / b) ** 2)
    value = np.clip((1 - distance) * np.minimum(a, b) + 0.5, 0, 1) * weights.astype(np.float32)[:, None, None]
    column, row = corner[:, 0, None, None] + dx.astype(np.int64), corner[:, 1, None, None] + dy.astype(np.int64)
    valid = (value > 0) & (column >= 0) & (row >= 0) & (column < shape[1]) & (row < shape[0])
    np.maximum.at(canvas.reshape(-1), (row * shape[1] + column)[valid], value[valid])
    return canvas


def _along(rng: np.random.Generator, field: Field, level: float, spacing: float) -> tuple[NDArray, NDArray]:
    """Points (N, 2) as x, y every `spacing` pixels along a level line, and the line's direction there (N,)."""
    points, angles = [], []
    for line in measure.find_contours(field, level):
        step = np.hypot(*np.diff(line, axis=0).T)
        length = np.concatenate([[0.0], np.cumsum(step)])
        number = int(length[-1] / spacing)
        if number < 2:
            continue
        at = (np.arange(number) + rng.random() + rng.normal(0, 0.1, number)) * length[-1] / number
        position = np.stack([np.interp(at, length, line[:, 1]), np.interp(at, length, line[:, 0])], axis=1)
        ahead = np.stack([np.interp(at + 2, length, line[:, 1]), np.interp(at + 2, length, line[:, 0])], axis=1)
        points.append(position)
        angles.append(np.arctan2(*(ahead - position).T[::-1]))
    if not points:
        return np.zeros((0, 2)), np.zeros(0)
    return np.concatenate(points), np.concatenate(angles)


def _scatter(rng: np.random.Generator, density: Field) -> NDArray:
    """Points (N, 2) as x, y drawn with the expected number `density` per pixel."""
    y, x = np.nonzero(rng.random(density.shape, dtype=np.float32) < density)
    return np.stack([x, y], axis=1) + rng.uniform(-0.5, 0.5, (len(x), 2))


def _stroma(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Field, Field]:
    """Haematoxylin and eosin of connective tissue over the whole canvas; knows nothing of the class."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    bend = 10 * noise(rng, shape, 22), 10 * noise(rng, shape, 22)
    fibres = 0.7 * noise(rng, shape, 12, 1.2, angle) + 0.5 * noise(rng, shape, 5, 0.8, angle)
    fibres = ndimage.map_coordinates(fibres, [y + bend[0], x + bend[1]], order=1, mode="wrap")
    patches = noise(rng, shape, 16)
    eosin = 0.30 + 0.09 * fibres + 0.05 * patches + 0.02 * noise(rng, shape, 0.8)
    loose = rng.uniform(0.9, 2.2)  # clefts between the fibres, where glass shows
    eosin *= 1 - np.clip((-fibres - 0.6 * patches - loose) * 2.0, 0, 0.95)
    haematoxylin = 0.05 + 0.015 * fibres
    flow = angle + 0.03 * bend[0]
    spindle = _scatter(rng, np.full(shape, rng.uniform(0.001, 0.003), dtype=np.float32))
    at = np.clip(np.rint(spindle).astype(int), 0, np.array(shape[::-1]) - 1)
    n = len(spindle)
    radii = np.stack([rng.uniform(3.5, 6.5, n), rng.uniform(1.0, 1.7, n)], axis=1)
    turned = flow[at[:, 1], at[:, 0]] + rng.normal(0, 0.25, n)
    nuclei = _splat(shape, spindle, radii, turned, rng.uniform(0.35, 0.6, n))
    crowd = np.clip(1 + 1.3 * noise(rng, shape, 20), 0.05, None)
    lymph = _scatter(rng, rng.uniform(0.0008, 0.006) * crowd)
    radii = rng.uniform(2.2, 3.0, (len(lymph), 1)) * rng.uniform(0.9, 1.1, (len(lymph), 2))
    nuclei = np.maximum(nuclei, _splat(shape, lymph, radii, np.zeros(len(lymph)), rng.uniform(0.55, 0.8, len(lymph))))
    return haematoxylin + nuclei, np.clip(eosin - 0.3 * nuclei, 0, None)


def _benign(rng: np.random.Generator, glands: Glands) -> tuple[Field, Field]:
    """Goblet cells around a clear lumen, one regular row of nuclei at the border."""
    shape, depth = glands.depth.shape, glands.depth
    relative = depth / np.maximum(glands.reach, 1)
    lumen = np.clip((relative - rng.uniform(0.62, 0.8) + 0.05 * noise(rng, shape, 5)) * 12, 0, 1)
    haematoxylin = 0.16 + 0.03 * noise(rng, shape, 2.5)
    eosin = 0.20 + 0.03 * noise(rng, shape, 3)
    mucin = np.zeros(shape, dtype=np.float32)
    size = rng.uniform(3.2, 4.6)
    for row in range(5):
        centres, angles = _along(rng, depth, 11.0 + row * 1.9 * size, 2.15 * size)
        n = len(centres)
        centres = centres + rng.normal(0, 0.8, (n, 2))
        radii = size * rng.uniform(0.75, 1.2, (n, 2)) * [0.9, 1.1]
        mucin = np.maximum(mucin, _splat(shape, centres, radii, angles, rng.uniform(0.65, 1.0, n)))
    pale = np.maximum(mucin * 0.75, lumen * 0.93)
    haematoxylin, eosin = haematoxylin * (1 - pale), eosin * (1 - pale)
    centres, angles = _along(rng, depth, 4.5, rng.uniform(4.6, 5.6))
    n = len(centres)
    radii = np.stack([rng.uniform(1.9, 2.5, n), rng.uniform(2.9, 3.8, n)], axis=1)
    nuclei = _splat(shape, centres + rng.normal(0, 0.5, (n, 2)), radii, angles, rng.uniform(0.5, 0.7, n))
    return haematoxylin + nuclei, eosin * (1 - 0.5 * nuclei)


def _malignant(rng: np.random.Generator, glands: Glands) -> tuple[Field, Field]:
    """Stratified, large, uneven nuclei; lumens that are slits, many, or absent, with debris."""
    shape, depth = glands.depth.shape, glands.depth
    wall = rng.uniform(11, 15) + 3 * noise(rng, shape, 12)
    holes = noise(rng, shape, rng.uniform(5, 8), rng.uniform(3.5, 5), rng.uniform(0, np.pi))
    lumen = np.clip(np.minimum((depth - wall) * 0.6, (holes - rng.uniform(-0.9, 0.3)) * 4), 0, 1)
    haematoxylin = 0.24 + 0.04 * noise(rng, shape, 2.5)
    eosin = 0.26 + 0.04 * noise(rng, shape, 3)
    nuclei = np.zeros(shape, dtype=np.float32)
    for row in range(7):
        centres, angles = _along(rng, depth, 3.5 + 5.0 * row, rng.uniform(5.0, 6.2))
        n = len(centres)
        centres = centres + rng.normal(0, 1.5, (n, 2))
        scale = np.exp(rng.normal(0.08, 0.2, n))[:, None]
        radii = scale * np.stack([rng.uniform(2.0, 3.2, n), rng.uniform(3.0, 4.6, n)], axis=1)
        angles = angles + rng.normal(0, 0.35, n)
        nuclei = np.maximum(nuclei, _splat(shape, centres, radii, angles, rng.uniform(0.4, 0.85, n)))
    debris = np.clip(noise(rng, shape, 9) - rng.uniform(0.0, 1.5), 0, 1) * np.clip(noise(rng, shape, 1.2) + 0.6, 0, 1)
    specks = _scatter(rng, 0.02 * debris)
    n = len(specks)
    dust = _splat(shape, specks, rng.uniform(0.8, 1.8, (n, 2)), np.zeros(n), rng.uniform(0.4, 0.8, n))
    keep = 1 - 0.97 * lumen
    haematoxylin = (haematoxylin + nuclei * 0.9) * keep + lumen * dust
    return haematoxylin, eosin * (1 - 0.4 * nuclei) * keep + lumen * debris * 0.3


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
    inner = _benign(rng, glands) if label == "benign" else _malignant(rng, glands)
    mixed = [o * (1 - inside) + i * inside for o, i in zip(outer, inner, strict=True)]
    return np.clip(mixed[0], 0, None), np.clip(mixed[1], 0, None)
