"""What scenes of various tissue share: cells that keep their distance, values at them, blood."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from histoloc.datasets.synthetic.glands import Field
from histoloc.datasets.synthetic.tissue import scatter, splat

Rng = np.random.Generator


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A number between two, each factor as likely as any other."""
    return np.exp(rng.uniform(np.log(low), np.log(high)))


def rise(values: Field, sharpness: float = 1.0) -> Field:
    """0 where values are negative, 1 from 1 / sharpness, a line between."""
    return np.clip(values * sharpness, 0, 1).astype(np.float32)


def grid(rng: Rng, shape: tuple[int, int], pitch: float, jitter: float = 0.22) -> NDArray:
    """Jittered hexagonal points (N, 2) as x, y, `pitch` apart: cells that keep their distance."""
    rows = np.arange(-pitch, shape[0] + pitch, pitch * 0.87)
    columns = np.arange(-pitch, shape[1] + pitch, pitch)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + (np.arange(len(rows)) % 2)[:, None] * pitch / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points = points + rng.normal(0, jitter * pitch, points.shape)
    inside = (points >= 0).all(axis=1) & (points <= np.array(shape[::-1]) - 1).all(axis=1)
    return points[inside]


def value_at(field: NDArray, points: NDArray) -> NDArray:
    """The field's values (N,) at points (N, 2) as x, y."""
    index = np.clip(np.rint(points).astype(int), 0, np.array(field.shape[::-1]) - 1)
    return field[index[:, 1], index[:, 0]]


def blood(rng: Rng, shape: tuple[int, int], where: Field) -> Field:
    """Eosin (H, W) of red cells, as dense as `where` says from 0 to 1."""
    cells = scatter(rng, (0.045 * where).astype(np.float32))
    n = len(cells)
    return splat(shape, cells, rng.uniform(1.9, 3.0, (n, 2)), np.zeros(n), rng.uniform(0.35, 0.7, n), hollow=0.3)
