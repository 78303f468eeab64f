"""Colon tissue with the variety of real slides, for priors: normal, reactive and tumour glands in any stroma.

Where `glands` shows one clean architecture per class, an image here mixes kinds of epithelium, of contents, of stroma
and of faults of cutting. Lengths are in micrometres, which are pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from histoloc.datasets.synthetic.cells import Rng, blood, grid, infiltrate, log_uniform, rise, value_at
from histoloc.datasets.synthetic.glands import Architecture, Field, Glands, Label, arrange, lay_out, noise
from histoloc.datasets.synthetic.tissue import fibres, paint_epithelium, scatter, splat


# ---------------------------------------------------------------- layout
def layout(rng: Rng, label: Label, shape: tuple[int, int], margin: int, free: NDArray[np.bool_]) -> Glands:
    """Glands of any size and density; none where `free` is false."""
    longest = float(np.exp(min(np.abs(rng.normal(0, 0.55)), 1.6)))
    stretch = (longest, longest)
    if label == "benign":
        spacing = log_uniform(rng, 55, 150)
        target = rng.uniform(0.1, 0.75)
        plan = Architecture(
            spacing=(spacing, spacing),
            disorder=rng.uniform(0.05, 0.25),
            size_spread=rng.uniform(0.05, 0.35),
            gap=(3, 22),
            warp=((rng.uniform(18, 40), rng.uniform(1, 8)), (8, rng.uniform(0.3, 1.5))),
            gap_spread=rng.uniform(0, 4),
            fused=rng.choice([0, 0.1, 0.3]),
            stretch=stretch,
        )
    else:
        spacing = log_uniform(rng, 50, 280)
        target = rng.uniform(0.15, 0.92)
        scale = np.sqrt(spacing / 75)
        plan = Architecture(
            spacing=(spacing, spacing),
            disorder=rng.uniform(0.1, 0.35),
            size_spread=rng.uniform(0.15, 0.5),
            gap=(-1, 14),
            warp=(
                (22 * scale, rng.uniform(2, 11) * scale),
                (9, rng.uniform(0.5, 3.5)),
                (3.5, rng.uniform(0, 1.2)),
            ),
            gap_spread=rng.uniform(0, 5),
            fused=rng.uniform(0, 0.6),
            stretch=stretch,
        )
    return arrange(rng, plan, shape, margin, target, free)


# ---------------------------------------------------------------- epithelium
CLEAN = 0.25  # share of images whose glands are the textbook ones of `histoloc.datasets.synthetic.glands`
KINDS = ("goblet", "columnar", "stratified", "solid", "cribriform", "dilated", "dark")
CHANCES: dict[Label, tuple[float, ...]] = {
    "benign": (0.66, 0.14, 0.02, 0.0, 0.0, 0.1, 0.08),
    "malignant": (0.06, 0.36, 0.2, 0.12, 0.12, 0.12, 0.02),
}


def epithelium(rng: Rng, label: Label, glands: Glands) -> tuple[Field, Field]:
    """Haematoxylin and eosin inside the glands."""
    shape, depth, n = glands.depth.shape, glands.depth, int(glands.instances.max()) + 1
    chances = np.array(CHANCES[label]) * rng.dirichlet(np.full(len(KINDS), 0.7)) + 1e-9
    kinds = rng.choice(len(KINDS), n, p=chances / chances.sum())
    reach = np.ones(n, dtype=np.float32)
    reach[glands.instances] = np.maximum(glands.reach, 1)
    if label == "benign":
        kinds[(reach < 13) & (rng.random(n) < 0.35)] = KINDS.index("dark")
    is_kind = {name: kinds == i for i, name in enumerate(KINDS)}
    wall, band = np.full((2, n), 1e4, dtype=np.float32)
    common = {k: rng.uniform(a, b) for k, a, b in (("columnar", 17, 30), ("stratified", 14, 34), ("dilated", 8, 17))}
    for name, mean in common.items():
        own = is_kind[name]
        wall[own] = mean * np.exp(rng.normal(0, 0.18, own.sum()))
    goblet = is_kind["goblet"]
    wall[goblet] = reach[goblet] * rng.uniform(0.5, 1.1) * np.exp(rng.normal(0, 0.12, goblet.sum()))
    band[goblet] = 6.5
    band[is_kind["columnar"]] = wall[is_kind["columnar"]] * rng.uniform(0.5, 0.8)
    band[is_kind["dilated"]] = wall[is_kind["dilated"]] * rng.uniform(0.6, 1.0)
    index = glands.instances
    wobble = rng.uniform(0.5, 3.5) * noise(rng, shape, rng.uniform(5, 14))
    lumen = rise(depth - wall[index] + wobble, 0.5)
    if is_kind["cribriform"].any():
        size = rng.uniform(4, 10)
        holes = noise(rng, shape, size) - rng.uniform(0.3, 1.1)
        lumen = np.maximum(lumen, rise(holes, 3) * rise(depth - 8, 0.4) * is_kind["cribriform"][index])
    slits = is_kind["stratified"] | is_kind["solid"]
    if slits.any():
        angle = rng.uniform(0, np.pi)
        holes = noise(rng, shape, rng.uniform(4, 12), rng.uniform(2.5, 5), angle) - rng.uniform(0.8, 2.2)
        lumen = np.maximum(lumen, rise(holes, 4) * rise(depth - 9, 0.4) * slits[index])
    cytoplasm_h = rng.uniform(0.1, 0.24) + 0.04 * noise(rng, shape, 2.0)
    cytoplasm_e = rng.uniform(0.16, 0.36) + 0.04 * noise(rng, shape, 3)
    shade = np.exp(rng.normal(0, 0.15, n))[index].astype(np.float32)
    apical = rise(depth - band[index], 0.25) * ~goblet[index]  # towards the lumen paler or pinker
    cytoplasm_h = cytoplasm_h * (1 - rng.uniform(0, 0.6) * apical)
    cytoplasm_e = cytoplasm_e * (1 + rng.uniform(-0.4, 0.3) * apical)
    haematoxylin, eosin = cytoplasm_h * shade, cytoplasm_e * shade
    if goblet.any():
        pale = _goblets(rng, depth, wall[index]) * goblet[index]
        haematoxylin, eosin = haematoxylin * (1 - pale), eosin * (1 - pale)
    if label == "malignant" and rng.random() < 0.5:  # vacuoles
        pale = 0.8 * rise(noise(rng, shape, rng.uniform(1.5, 4)) - rng.uniform(1.3, 2.4), 3) * (depth > 6)
        haematoxylin, eosin = haematoxylin * (1 - pale), eosin * (1 - pale)
    nuclei = _nuclei(rng, label, glands, lumen, band, is_kind)
    keep = 1 - lumen
    haematoxylin, eosin = (haematoxylin + nuclei) * keep, (eosin + 0.15 * nuclei) * keep
    content_h, content_e = _content(rng, glands, lumen, label)
    return haematoxylin + content_h * lumen, eosin + content_e * lumen


def _goblets(rng: Rng, depth: Field, wall: Field) -> Field:
    """Share of pale mucus (H, W): large round cells between the nuclei and the lumen."""
    size = rng.uniform(3.2, 7.5)
    points = grid(rng, depth.shape, 2.05 * size, 0.16)
    own = value_at(depth, points)
    points = points[
        (own > 5 + 0.75 * size) & (own < value_at(wall, points) + 0.3 * size) & (rng.random(len(own)) < 0.93)
    ]
    n = len(points)
    radii = size * rng.uniform(0.75, 1.15, (n, 2))
    mucus = splat(depth.shape, points, radii, rng.uniform(0, np.pi, n), rng.uniform(0.7, 1.0, n), window=14)
    fill = rng.uniform(0.5, 0.98)
    return np.maximum(fill * mucus, rng.uniform(0, 0.8) * rise(depth - 8, 0.2))


def _nuclei(rng: Rng, label: Label, glands: Glands, lumen: Field, band: NDArray, is_kind: dict[str, NDArray]) -> Field:
    depth, shape, index = glands.depth, glands.depth.shape, glands.instances
    gy, gx = np.gradient(ndimage.gaussian_filter(depth, 2.0))
    radial = np.arctan2(gy, gx)
    apical = np.asarray(ndimage.distance_transform_edt(lumen < 0.5), dtype=np.float32)
    bare = rng.uniform(1.5, 6.5)
    total = np.zeros(shape, dtype=np.float32)
    tumour = label == "malignant"
    dark = rng.uniform(0.3, 0.75)
    for names, pitch, tall, wide in (
        (("goblet",), rng.uniform(4.0, 5.6), rng.uniform(2.2, 3.8), rng.uniform(1.5, 2.3)),
        (("columnar", "dilated"), rng.uniform(4.6, 6.4), rng.uniform(3.4, 6.0), rng.uniform(1.6, 2.4)),
        (("stratified", "solid", "cribriform"), rng.uniform(5.8, 8.6), rng.uniform(2.8, 4.8), rng.uniform(2.2, 3.6)),
        (("dark",), rng.uniform(4.2, 5.4), rng.uniform(2.6, 3.6), rng.uniform(1.6, 2.4)),
    ):
        own = np.any([is_kind[name] for name in names], axis=0)
        if not own.any():
            continue
        points = grid(rng, shape, pitch, 0.2)
        at = value_at(index, points)
        level = value_at(depth, points)
        ok = own[at] & (at > 0) & (level > 2.2) & (level < band[at] + rng.normal(0, 1.0, len(at)))
        ok &= (value_at(apical, points) > bare) | (level < 5)
        points, at = points[ok], at[ok]
        n = len(points)
        scale = np.exp(rng.normal(0, 0.22 if tumour else 0.1, n))[:, None]
        radii = scale * np.stack([np.full(n, tall), np.full(n, wide)], axis=1)
        angle = value_at(radial, points) + rng.normal(0, 0.45 if tumour else 0.2, n)
        weight = dark * rng.uniform(0.7, 1.15, n) * (1.35 if names == ("dark",) else 1.0)
        hollow = rng.uniform(0.1, 0.65) if tumour else rng.uniform(0.1, 0.45)
        layer = splat(shape, points, radii, angle, weight, hollow=hollow, window=10)
        if tumour and rng.random() < 0.6:
            few = points[rng.random(n) < 0.6]
            m = len(few)
            spots = splat(shape, few, np.full((m, 2), rng.uniform(0.8, 1.3)), np.zeros(m), rng.uniform(0.3, 0.6, m))
            layer = np.maximum(layer, spots)
        total = np.maximum(total, layer)
    return total * (1 + 0.2 * noise(rng, shape, 0.9))


def _content(rng: Rng, glands: Glands, lumen: Field, label: Label) -> tuple[Field, Field]:
    """What lies in the lumens: mostly nothing, else mucus, secretion, debris, necrosis, cells or blood."""
    shape, n = lumen.shape, int(glands.instances.max()) + 1
    names = ("none", "mucus", "secretion", "debris", "necrosis", "cells", "blood")
    chances = np.array([4, 2, 1, 1.2, 0.6, 0.6, 0.4] if label == "benign" else [4, 1.2, 1, 2.5, 2.5, 1, 0.6])
    chances = chances * rng.dirichlet(np.full(len(names), 0.8)) + 1e-9
    kinds = rng.choice(len(names), n, p=chances / chances.sum())
    kind = kinds[glands.instances]
    h, e = np.zeros((2, *shape), dtype=np.float32)
    wisps = rise(noise(rng, shape, 7, 2, rng.uniform(0, np.pi)) + 0.6, 0.6)
    own = kind == 1
    h, e = h + own * rng.uniform(0.02, 0.16) * wisps, e + own * rng.uniform(0, 0.12) * wisps
    own = kind == 2
    e = e + own * rng.uniform(0.08, 0.4) * (1 + 0.15 * noise(rng, shape, 5))
    h = h + own * rng.uniform(0, 0.06)
    if (kind >= 3).any():
        clumps = rise(noise(rng, shape, rng.uniform(5, 12)) + rng.uniform(-0.9, 0.6), 1.5)
        full = np.where(kind == 4, np.maximum(clumps, rng.uniform(0.5, 1.0)), clumps)
        grain = np.clip(1 + 0.5 * noise(rng, shape, rng.uniform(0.8, 2)), 0.1, 2)
        dead = (kind == 3) | (kind == 4)
        e = e + dead * full * grain * rng.uniform(0.15, 0.42)
        h = h + dead * full * grain * rng.uniform(0.0, 0.14)
        density = full * np.select([dead, kind == 5], [rng.uniform(0.002, 0.03), rng.uniform(0.004, 0.02)], 0)
        dust = scatter(rng, density.astype(np.float32))
        m = len(dust)
        radii = rng.uniform(0.7, 2.4, (m, 1)) * rng.uniform(0.8, 1.2, (m, 2))
        h = h + splat(shape, dust, radii, rng.uniform(0, np.pi, m), rng.uniform(0.25, 0.7, m))
        e = e + blood(rng, shape, full * (kind == 6))
    return h, e


# ---------------------------------------------------------------- stroma
def stroma(rng: Rng, shape: tuple[int, int], outside: Field) -> tuple[Field, Field]:
    """Haematoxylin and eosin of everything that is no gland; `outside` is the distance to the next gland."""
    h, e = _matrix(rng, shape)
    crowd = np.clip(1 + rng.uniform(0, 1.3) * noise(rng, shape, rng.uniform(10, 30)), 0.03, None)
    density = log_uniform(rng, 0.0008, 0.022) * crowd
    if rng.random() < 0.35:  # a lymphoid aggregate
        follicle = rise(noise(rng, shape, rng.uniform(25, 60)) - rng.uniform(0.3, 1.2), 3)
        density = np.maximum(density, follicle * rng.uniform(0.018, 0.034))
        h, e = h + 0.09 * follicle, e * (1 - 0.4 * follicle)
    cells = scatter(rng, density.astype(np.float32))
    n = len(cells)
    radii = rng.uniform(1.8, 2.9, (n, 1)) * rng.uniform(0.8, 1.25, (n, 2))
    dots = splat(shape, cells, radii, rng.uniform(0, np.pi, n), rng.uniform(0.3, 0.8, n), hollow=rng.uniform(0, 0.4))
    if rng.random() < 0.5:  # plasma cells: dark, with some cytoplasm around
        h = h + 0.5 * ndimage.gaussian_filter(dots, 2.2)
    h = h + dots
    if rng.random() < 0.45:
        h, e = infiltrate(rng, h, e)
    if rng.random() < 0.45:
        vessels = rise(noise(rng, shape, rng.uniform(6, 14)) - rng.uniform(1.7, 2.5), 1)
        e = e + blood(rng, shape, vessels)
    if rng.random() < 0.2:
        e = e + blood(rng, shape, rise(noise(rng, shape, 18) - rng.uniform(0.4, 1.5), 1))
    h, e = _vessel_walls(rng, h, e, outside)
    if rng.random() < 0.15:
        h, e = _necrosis(rng, h, e)
    if rng.random() < 0.08:
        h, e = _fat(rng, h, e)
    return h, np.clip(e, 0, None)


def _matrix(rng: Rng, shape: tuple[int, int]) -> tuple[Field, Field]:
    """Fibres, muscle and loose tissue, one beside another."""
    parts = []
    for _ in range(2 if rng.random() < 0.5 else 1):
        kind = rng.choice(["fibres", "muscle", "loose", "cellular"], p=[0.45, 0.2, 0.15, 0.2])
        angle = rng.uniform(0, np.pi)
        strands, flow = fibres(rng, shape, angle)
        patches = noise(rng, shape, 14)
        mean = {"fibres": (0.12, 0.34), "muscle": (0.22, 0.5), "loose": (0.03, 0.14), "cellular": (0.1, 0.26)}[kind]
        mean = rng.uniform(*mean)
        contrast = {"fibres": 0.22, "muscle": 0.1, "loose": 0.8, "cellular": 0.12}[kind] * mean
        e = mean + contrast * strands + 0.15 * mean * patches + 0.1 * mean * noise(rng, shape, 0.8)
        cleft = rng.uniform(1.2, 3.0) if kind != "loose" else rng.uniform(0.2, 1.2)
        e = e * (1 - np.clip((-strands - 0.7 * patches - cleft) * 1.6, 0, 0.95))
        h = rng.uniform(0.02, 0.1) + 0.015 * strands + 0.015 * noise(rng, shape, 1.5)
        centres = scatter(rng, np.full(shape, log_uniform(rng, 0.0006, 0.006), dtype=np.float32))
        n = len(centres)
        radii = np.stack([rng.uniform(3.0, 8.0, n), rng.uniform(0.8, 2.0, n)], axis=1)
        angles = value_at(flow, centres) + rng.normal(0, 0.25, n)
        h = h + splat(shape, centres, radii, angles, rng.uniform(0.2, 0.55, n), window=9)
        parts.append((np.clip(h, 0, None), np.clip(e, 0, None)))
    if len(parts) == 1:
        return parts[0]
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    side = (np.cos(angle) * (x - shape[1] / 2) + np.sin(angle) * (y - shape[0] / 2)) / 60
    weight = rise(side + noise(rng, shape, 40) + rng.normal(0, 0.8), 3)
    return tuple(a * weight + b * (1 - weight) for a, b in zip(*parts, strict=True))  # type: ignore[return-value]


def _vessel_walls(rng: Rng, h: Field, e: Field, outside: Field) -> tuple[Field, Field]:
    """Rings of flat cells and muscle around a white or bloody hole: they look a little like glands."""
    shape = h.shape
    for _ in range(rng.integers(0, 4)):
        x0, y0 = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        radius, ratio, angle = log_uniform(rng, 6, 34), rng.uniform(0.35, 1), rng.uniform(0, np.pi)
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        u = (x - x0) * np.cos(angle) + (y - y0) * np.sin(angle)
        v = ((y - y0) * np.cos(angle) - (x - x0) * np.sin(angle)) / ratio
        distance = np.hypot(u, v) - radius + 1.5 * noise(rng, shape, 5)
        if outside[distance < 3].min(initial=99) < 3:
            continue
        hole = rise(0.5 - distance / 2)
        wall = rise(1 - np.abs(distance - 4) / rng.uniform(3, 9)) * (1 - hole)
        e = e * (1 - hole) + 0.3 * wall * rng.uniform(0.3, 1.2)
        h = h * (1 - hole)
        ring = grid(rng, shape, rng.uniform(6, 12), 0.3)
        ring = ring[np.abs(value_at(distance, ring) - 1.5) < 1.5]
        n = len(ring)
        turn = np.arctan2(ring[:, 1] - y0, ring[:, 0] - x0) + np.pi / 2
        radii = np.stack([rng.uniform(2.5, 5, n), rng.uniform(0.8, 1.5, n)], axis=1)
        h = h + splat(shape, ring, radii, turn, rng.uniform(0.3, 0.6, n))
        if rng.random() < 0.5:
            e = e + blood(rng, shape, hole * rng.uniform(0.3, 1))
    return h, e


def _necrosis(rng: Rng, h: Field, e: Field) -> tuple[Field, Field]:
    shape = h.shape
    dead = rise(noise(rng, shape, rng.uniform(25, 60)) - rng.uniform(0.2, 1.2), 2)
    grain = np.clip(1 + 0.5 * noise(rng, shape, rng.uniform(0.8, 2)), 0.1, 2)
    dust = scatter(rng, (dead * rng.uniform(0.003, 0.03)).astype(np.float32))
    m = len(dust)
    specks = splat(shape, dust, rng.uniform(0.7, 2.2, (m, 2)), np.zeros(m), rng.uniform(0.25, 0.7, m))
    holes = 1 - 0.9 * rise(noise(rng, shape, 5) - rng.uniform(0.8, 2), 2) * dead
    return (h * (1 - 0.9 * dead) + specks) * holes, (e * (1 - dead) + dead * grain * rng.uniform(0.15, 0.4)) * holes


def _fat(rng: Rng, h: Field, e: Field) -> tuple[Field, Field]:
    shape = h.shape
    where = rise(noise(rng, shape, 50) - rng.uniform(0.2, 1.0), 6)
    points = grid(rng, shape, rng.uniform(34, 60), 0.1)
    first, second = (np.full(shape, np.inf, dtype=np.float32) for _ in range(2))
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    for px, py in points:
        distance = np.hypot(x - px, y - py)
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    empty = where * rise(second - first - rng.uniform(1, 3), 0.7)
    return h * (1 - empty), e * (1 - empty)


# ---------------------------------------------------------------- the whole
def edge_of_tissue(rng: Rng, shape: tuple[int, int]) -> Field:
    """Distance-like field (H, W), negative where there is glass; positive everywhere in most images."""
    if rng.random() > 0.3:
        return np.full(shape, 1e3, dtype=np.float32)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * (x - shape[1] / 2) + np.sin(angle) * (y - shape[0] / 2)
    far = np.abs(along).max()
    rough = rng.uniform(4, 30) * noise(rng, shape, rng.uniform(15, 50)) + rng.uniform(0, 3) * noise(rng, shape, 5)
    return (far * rng.uniform(0.1, 0.95) - along + rough).astype(np.float32)


def colon(rng: Rng, label: Label, shape: tuple[int, int], margin: int) -> tuple[Field, Field, NDArray[np.int32]]:
    """Haematoxylin, eosin and gland numbers over the whole canvas."""
    edge = edge_of_tissue(rng, shape)
    free = edge > -30
    if rng.random() < 0.4:  # muscle or submucosa, where no gland is
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        angle = rng.uniform(0, 2 * np.pi)
        along = np.cos(angle) * (x - shape[1] / 2) + np.sin(angle) * (y - shape[0] / 2)
        free &= along + 15 * noise(rng, shape, 30) < np.abs(along).max() * rng.uniform(-0.6, 0.9)
    clean = rng.random() < CLEAN
    glands = lay_out(rng, label, shape, margin) if clean else layout(rng, label, shape, margin, free)
    inside = glands.instances > 0
    outside = np.asarray(ndimage.distance_transform_edt(~inside), dtype=np.float32)
    outer_h, outer_e = stroma(rng, shape, outside)
    soft = np.clip(ndimage.gaussian_filter(inside.astype(np.float32), 0.6), 0, 1)
    inner_h, inner_e = paint_epithelium(rng, label, glands) if clean else epithelium(rng, label, glands)
    if rng.random() < 0.45:  # the tissue shrank: white clefts beside the glands
        width = rng.uniform(1.5, 7) * rise(noise(rng, shape, rng.uniform(12, 30)) - rng.uniform(-0.5, 1.2), 1.5)
        cleft = rise(width - outside, 0.8) * (1 - soft) * rng.uniform(0.6, 1)
        outer_h, outer_e = outer_h * (1 - cleft), outer_e * (1 - cleft)
    if rng.random() < 0.35:  # tears
        tear = rise(
            noise(rng, shape, rng.uniform(14, 40), rng.uniform(2, 5), rng.uniform(0, np.pi)) - rng.uniform(1.6, 2.6), 3
        )
        outer_h, outer_e = outer_h * (1 - tear), outer_e * (1 - tear)
    h = outer_h * (1 - soft) + inner_h * soft
    e = outer_e * (1 - soft) + inner_e * soft
    instances = glands.instances.copy()
    if edge.min() < 0:
        h, e = _glass(rng, h, e, edge, inside)
        instances[edge < 0] = 0
    return np.clip(h, 0, None).astype(np.float32), np.clip(e, 0, None).astype(np.float32), instances


def _glass(rng: Rng, h: Field, e: Field, edge: Field, inside: NDArray[np.bool_]) -> tuple[Field, Field]:
    """Empty glass beyond the edge, sometimes with shreds on it; surface epithelium, which is no gland, along it."""
    shape = h.shape
    tissue = np.asarray(ndimage.distance_transform_edt(edge > 0), dtype=np.float32)
    if rng.random() < 0.45:
        width = rng.uniform(12, 26)
        band = rise(width - tissue, 0.7) * (edge > 0) * ~inside
        gy, gx = np.gradient(ndimage.gaussian_filter(tissue, 2.0))
        points = grid(rng, shape, rng.uniform(4.5, 6), 0.2)
        own = value_at(tissue, points)
        points = points[(own > width * 0.45) & (own < width - 1) & (value_at(band, points) > 0.5)]
        n = len(points)
        radii = np.stack([rng.uniform(2.8, 4.6, n), rng.uniform(1.5, 2.2, n)], axis=1)
        nuclei = splat(
            shape, points, radii, value_at(np.arctan2(gy, gx), points), rng.uniform(0.3, 0.65, n), hollow=0.3
        )
        h = h * (1 - band) + band * (rng.uniform(0.08, 0.2) + nuclei)
        e = e * (1 - band) + band * rng.uniform(0.15, 0.35)
    keep = rise(edge, 0.6)
    shreds = rise(noise(rng, shape, rng.uniform(5, 15)) - rng.uniform(1.0, 3.0), 1) * rng.uniform(0.2, 1)
    keep = np.maximum(keep, shreds)
    return h * keep, e * keep
