"""What scenes of various tissue share: cells that keep their distance, values at them, blood."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from histoloc.datasets.synthetic.glands import Field, noise
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


def infiltrate(rng: Rng, h: Field, e: Field) -> tuple[Field, Field]:
    """Inflammatory cells that touch each other, in a part of the tissue: crowded as a solid tumour, but small."""
    shape = h.shape
    where = rise(noise(rng, shape, rng.uniform(25, 90)) + rng.uniform(-0.7, 1.2), 2)
    cells = grid(rng, shape, rng.uniform(5.2, 9.5), 0.3)
    cells = cells[rng.random(len(cells)) < value_at(where, cells) * rng.uniform(0.5, 1.0)]
    n = len(cells)
    radii = rng.uniform(1.9, 2.9) * np.exp(rng.normal(0, 0.16, (n, 1))) * rng.uniform(0.75, 1.25, (n, 2))
    turn, shade = rng.uniform(0, np.pi, n), rng.uniform(0.3, 0.75) * rng.uniform(0.7, 1.2, n)
    nuclei = splat(shape, cells, radii, turn, shade, hollow=rng.uniform(0, 0.4))
    pink = rng.random(n) < rng.uniform(0, 0.5)  # eosinophils; the others are plasma cells and lymphocytes
    bodies = cells + rng.normal(0, 0.8, cells.shape)  # the nucleus lies beside the middle
    plasm_e = splat(shape, bodies, 1.7 * radii, turn, np.where(pink, rng.uniform(0.3, 0.6), rng.uniform(0.05, 0.3)))
    plasm_h = splat(shape, bodies, 1.6 * radii, turn, np.where(pink, 0.0, rng.uniform(0.02, 0.2)))
    return np.maximum(h * (1 - 0.3 * where), np.maximum(nuclei, plasm_h)), np.maximum(e * (1 - 0.3 * where), plasm_e)
