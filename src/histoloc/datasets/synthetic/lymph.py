"""Lymph nodes with nests of metastatic carcinoma, with the variety of real slides, for priors.

What a tumour image adds to a normal one is its nests: large cells with pale or coarse nuclei, prominent nucleoli and
more cytoplasm than lymphocytes have, from a cluster of a few cells to sheets, and collagen beside them. Everything
else is drawn from one distribution for both classes, above all what is mistaken for tumour: germinal centres,
histiocytes in sinuses and granulomas, plump endothelium, fibrosis. Lengths are in micrometres, which are pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from skimage import measure

from histoloc.datasets.synthetic.cells import Rng, blood, grid, log_uniform, rise, value_at
from histoloc.datasets.synthetic.glands import Field, noise
from histoloc.datasets.synthetic.tissue import fibres, scatter, splat

Mask = NDArray[np.bool_]
NodeLabel = Literal["normal", "tumour"]
NODE_CLASSES: tuple[NodeLabel, NodeLabel] = ("normal", "tumour")
SMALLEST_NEST = 250  # pixels: three or four cells


@dataclass(frozen=True)
class Cells:
    """One kind of cell in one image; lengths in pixels, densities of stain as in `tissue`."""

    pitch: float  # between neighbours
    radius: float  # of the nucleus
    dark: float  # haematoxylin of the rim
    spread: float = 0.08  # of the radius, standard deviation of its logarithm
    long: float = 0.12  # the axes' ratio is 1 and about this more
    pale: float = 0.0  # by how much the inside is paler than the rim, as a share
    nucleoli: float = 0.0  # share of nuclei with one
    share: float = 0.95  # of the places that are taken
    jitter: float = 0.16  # of the places, in pitches


@dataclass(frozen=True, eq=False)
class Node:
    """Which tissue lies where, all masks (H, W); later ones lie over earlier ones."""

    depth: Field  # below the surface of the node, negative outside
    follicle: Mask  # germinal centres
    mantle: Mask
    nodule: Mask  # of histiocytes
    sinus: Mask
    vessel: Field  # distance to the wall of the nearest vessel, negative in its hole
    collagen: Mask  # capsule, trabeculae, scars
    nest: Mask


# ---------------------------------------------------------------- layout
def _blob(rng: Rng, shape: tuple[int, int], x0: float, y0: float, radius: float, rough: float = 0.2) -> Field:
    """Distance-like (H, W), negative inside an uneven ellipse."""
    angle, ratio = rng.uniform(0, np.pi), np.exp(0.5 * np.abs(rng.normal(0, 0.4)))
    y, x = (np.arange(n, dtype=np.float32) for n in shape)
    x, y = x[None] - np.float32(x0), y[:, None] - np.float32(y0)
    u, v = (x * np.cos(angle) + y * np.sin(angle)) / ratio, (y * np.cos(angle) - x * np.sin(angle)) * ratio
    return np.hypot(u, v) - radius + rough * radius * noise(rng, shape, max(0.45 * radius, 4))


def _blobs(rng: Rng, where: Mask, number: int, radii: tuple[float, float], rough: float = 0.2) -> Field:
    """Distance-like (H, W), negative in blobs whose centres lie in `where`."""
    field = np.full(where.shape, 1e3, dtype=np.float32)
    places = np.argwhere(where)
    for _ in range(number if len(places) else 0):
        y, x = places[rng.integers(len(places))]
        np.minimum(field, _blob(rng, where.shape, x, y, log_uniform(rng, *radii), rough), out=field)
    return field


def _surface(rng: Rng, shape: tuple[int, int]) -> Field:
    """Depth below the surface of the node, which half of the images show."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * (x - shape[1] / 2) + np.sin(angle) * (y - shape[0] / 2)
    far = np.abs(along).max()
    start = far * rng.uniform(-0.25, 0.95) if rng.random() < 0.5 else far + 80
    rough = rng.uniform(2, 22) * noise(rng, shape, rng.uniform(30, 70)) + rng.uniform(0, 3) * noise(rng, shape, 7)
    return along + start + rough


def _lay_out(rng: Rng, label: NodeLabel, shape: tuple[int, int], margin: int) -> Node:
    depth = _surface(rng, shape)
    capsule = log_uniform(rng, 5, 45) * np.clip(1 + 0.35 * noise(rng, shape, 30), 0.2, None)
    gap = rng.uniform(-8, 22) + rng.uniform(3, 12) * noise(rng, shape, 30)
    within = depth > capsule
    sinus = within & (depth < capsule + gap)
    if rng.random() < 0.4:  # of the medulla, or of the cortex along trabeculae
        region = noise(rng, shape, 80) > rng.uniform(-1.2, 0.8)
        sinus |= region & (np.abs(noise(rng, shape, rng.uniform(12, 34))) < rng.uniform(0.08, 0.7)) & within
    number = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0
    field = _blobs(rng, depth > capsule + 30, number, (32, 170), 0.1)
    rim = rng.uniform(0, 40)
    nodules = _blobs(rng, within, int(rng.integers(1, 6)) if rng.random() < 0.25 else 0, (14, 80), 0.25)
    vessel = _blobs(rng, depth > 0, int(rng.integers(0, 7)), (3.5, 26), 0.25)
    collagen = (depth > 0) & ~within
    if rng.random() < 0.35:
        collagen |= within & (np.abs(noise(rng, shape, rng.uniform(35, 90))) < log_uniform(rng, 0.02, 0.16))
    if rng.random() < 0.12:
        collagen |= within & (noise(rng, shape, rng.uniform(25, 60)) > rng.uniform(0.4, 1.6))
    nest = np.zeros(shape, dtype=bool)
    if label == "tumour":
        nest, strands = _nests(rng, within, sinus, depth > 0, margin)
        collagen = collagen & ~nest | strands
        vessel[nest] = 1e3
    follicle, mantle = (field < 0) & within, (field < rim) & (field >= 0) & within
    return Node(depth, follicle, mantle, (nodules < 0) & within, sinus, vessel, collagen, nest)


def _nests(rng: Rng, within: Mask, sinus: Mask, tissue: Mask, margin: int) -> tuple[Mask, Mask]:
    """Nests, and strands of collagen beside and between them."""
    shape = within.shape
    way = rng.choice(["clusters", "nests", "sheet", "cords", "sinus"], p=[0.2, 0.28, 0.32, 0.12, 0.08])
    visible = np.zeros(shape, dtype=bool)
    visible[2 * margin : -2 * margin, 2 * margin : -2 * margin] = True
    through = rng.random() < 0.15 or (within & visible).sum() < 20 * SMALLEST_NEST
    home = tissue if through else within  # some break through the capsule
    if way == "clusters":
        field = _blobs(rng, home, int(rng.integers(1, 7)), (10, 32), 0.3)
    elif way == "nests":
        field = _blobs(rng, home, int(rng.integers(2, 14)), (18, 75), 0.3)
    elif way == "sheet":
        base = noise(rng, shape, rng.uniform(35, 110))
        field = 30 * (base - np.quantile(base[home], 1 - rng.uniform(0.15, 1.0))) * -1
    elif way == "cords":
        base = np.abs(noise(rng, shape, rng.uniform(16, 45), rng.uniform(10, 20), rng.uniform(0, np.pi)))
        field = 40 * (base - rng.uniform(0.2, 0.6)) + 40 * (noise(rng, shape, 70) < rng.uniform(-0.8, 0.6))
    else:
        field = np.where(sinus & (noise(rng, shape, 40) > rng.uniform(-1, 0.5)), -9.0, 9.0)
    field = field + rng.uniform(0, 3) * noise(rng, shape, rng.uniform(4, 9))
    whole = np.asarray(ndimage.binary_opening(ndimage.binary_closing(field < 0, iterations=2), iterations=4)) & home
    mask = whole
    if way in ("sheet", "nests") and rng.random() < 0.6:
        wide = rng.uniform(18, 70)
        between = np.abs(noise(rng, shape, wide)) < rng.uniform(1.5, 12) / wide
        mask = np.asarray(ndimage.binary_opening(whole & ~between, iterations=3))
    pieces = np.asarray(measure.label(mask, connectivity=1))
    mask &= np.bincount(pieces.ravel())[pieces] >= SMALLEST_NEST
    if (mask & visible).sum() < SMALLEST_NEST:
        mask = mask | (_blobs(rng, home & visible, 1, (14, 40)) < 0) & home
    desmoplasia = rng.choice([0, 0, 4, 12, 30])
    beside = np.asarray(ndimage.distance_transform_edt(~mask)) < desmoplasia * rise(1 + noise(rng, shape, 25))
    return mask, (beside | whole) & ~mask & home


# ---------------------------------------------------------------- cells
def _put(rng: Rng, where: Mask, cells: Cells, turn: Field | None = None) -> Field:
    """Haematoxylin (H, W) of the nuclei of one kind whose centres lie in `where`, along `turn` or any way."""
    shape = where.shape
    points = grid(rng, shape, cells.pitch, cells.jitter)
    points = points[value_at(where, points) & (rng.random(len(points)) < cells.share)]
    n = len(points)
    if n == 0:
        return np.zeros(shape, dtype=np.float32)
    size = cells.radius * np.exp(np.clip(rng.normal(0, cells.spread, n), -0.6, 0.6))
    ratio = np.sqrt(1 + np.abs(rng.normal(cells.long, 0.5 * cells.long, n)))
    radii = np.stack([size * ratio, size / ratio], axis=1)
    angles = rng.uniform(0, np.pi, n) if turn is None else value_at(turn, points) + rng.normal(0, 0.25, n)
    dark = cells.dark * np.exp(rng.normal(0, 0.18, n))
    window = int(np.ceil(radii.max())) + 1
    layer = splat(shape, points, radii, angles, dark, window=window)
    if cells.pale:
        pale = dark * np.clip(cells.pale + rng.normal(0, 0.12, n), 0, 0.9)
        layer -= splat(shape, points, np.maximum(radii - 1.1, 0.4), angles, pale, window=window)
    if cells.nucleoli:
        dots = points[rng.random(n) < cells.nucleoli]
        m = len(dots)
        dots = dots + rng.normal(0, 0.22 * cells.radius, (m, 2))
        radii = rng.uniform(0.7, 0.2 * cells.radius + 0.6, (m, 1)) * np.ones(2)
        layer = np.maximum(layer, splat(shape, dots, radii, np.zeros(m), rng.uniform(0.9, 1.6, m) * cells.dark))
    return np.maximum(layer, 0)


def _borders(rng: Rng, shape: tuple[int, int], pitch: float) -> Field:
    """How much farther the second nearest of scattered points is than the nearest (H, W): small at cells' borders."""
    points = grid(rng, (shape[0] + 120, shape[1] + 120), pitch, 0.2) - 60
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = np.asarray(KDTree(points).query(np.stack([x.ravel(), y.ravel()], axis=1), k=2)[0])
    return (distance[:, 1] - distance[:, 0]).reshape(shape).astype(np.float32)


def _tumour(rng: Rng, nest: Mask) -> tuple[Field, Field, Field, Cells]:
    """Cytoplasm (two stains) over the whole canvas, lumens (H, W), and the cells of one carcinoma."""
    shape = nest.shape
    radius = rng.uniform(4.4, 8.6)
    cells = Cells(
        pitch=2 * radius * rng.uniform(0.88, 1.55),
        radius=radius,
        dark=rng.uniform(0.28, 0.75),
        spread=rng.uniform(0.08, 0.28),
        long=rng.uniform(0.05, 0.7),
        pale=rng.uniform(0.0, 0.7),
        nucleoli=rng.choice([0.0, 0.4, 0.9]),
        share=rng.uniform(0.8, 0.98),
        jitter=rng.uniform(0.12, 0.26),
    )
    h = rng.uniform(0.04, 0.22) * (1 + 0.2 * noise(rng, shape, rng.uniform(2, 8)))
    e = rng.uniform(0.08, 0.42) * (1 + 0.18 * noise(rng, shape, rng.uniform(2, 8)))
    e = e * (1 + 0.15 * noise(rng, shape, 30))
    if rng.random() < 0.45:
        border = rise(1.6 - _borders(rng, shape, cells.pitch), 0.7)
        strength = rng.uniform(-0.6, 0.7)  # membranes, or gaps where the cells have come apart
        h, e = h * (1 + strength * border), e * (1 + strength * border)
    if rng.random() < 0.2:  # vacuoles
        hole = 0.85 * rise(noise(rng, shape, rng.uniform(1.5, 4)) - rng.uniform(1.2, 2.2), 3)
        h, e = h * (1 - hole), e * (1 - hole)
    lumen = np.zeros(shape, dtype=np.float32)
    inner = np.asarray(ndimage.distance_transform_edt(nest), dtype=np.float32)
    if rng.random() < 0.25:  # glands and cribriform nests
        lumen = rise(noise(rng, shape, rng.uniform(6, 16)) - rng.uniform(0.6, 1.6), 3) * rise(inner - 13, 0.4)
        h, e = h * (1 - lumen), e * (1 - lumen * rng.uniform(0.6, 1))
    if rng.random() < 0.12:  # the middle of a sheet is dead
        dead = rise(inner - rng.uniform(30, 60) + 12 * noise(rng, shape, 14), 0.1)
        dust = rng.uniform(0.05, 0.3) * rise(noise(rng, shape, 1.2)) * dead
        h, e = h * (1 - 0.6 * dead) + dust, e * (1 + rng.uniform(0, 0.6) * dead)
        lumen = np.maximum(lumen, dead)
    return np.clip(h, 0, None), np.clip(e, 0, None), lumen, cells


# ---------------------------------------------------------------- tissue
def _ground(rng: Rng, node: Node, tumour: tuple[Field, Field], strands: Field) -> tuple[Field, Field]:
    """What lies between the nuclei: reticulum, cytoplasm, collagen, lymph."""
    shape = node.nest.shape
    cloud, grain = noise(rng, shape, rng.uniform(8, 20)), noise(rng, shape, rng.uniform(1, 2.5))
    h = rng.uniform(0.06, 0.22) * (1 + 0.15 * cloud + 0.15 * grain)
    e = rng.uniform(0.05, 0.24) * (1 + 0.2 * cloud + 0.2 * grain)
    pale = rng.uniform(0.6, 1.05)
    wisps = rise(0.6 + 0.5 * noise(rng, shape, 3) + 0.3 * cloud)
    foam = np.clip(1 + rng.uniform(0, 0.5) * noise(rng, shape, rng.uniform(1, 3)), 0, None)
    tense = np.clip(1 + 0.2 * strands + 0.1 * cloud, 0, None)
    wall = rise(rng.uniform(2, 9) - node.vessel, 0.5)
    layers = (
        (node.follicle, h * pale, e * rng.uniform(0.7, 1.2)),
        (node.nodule, rng.uniform(0.02, 0.12) * foam, rng.uniform(0.1, 0.34) * foam),
        (node.sinus, rng.uniform(0.0, 0.08) * wisps, rng.uniform(0.01, 0.16) * wisps),
        (node.collagen, rng.uniform(0.02, 0.1) * tense, rng.uniform(0.2, 0.5) * tense),
        (wall, rng.uniform(0.04, 0.1) * tense, rng.uniform(0.15, 0.42) * tense),
        (node.nest, *tumour),
        (rise(-node.vessel, 0.6), np.float32(0), np.float32(rng.uniform(0, 0.06))),
    )
    for mask, own_h, own_e in layers:
        soft = np.clip(ndimage.gaussian_filter(np.asarray(mask, dtype=np.float32), 0.8), 0, 1)
        h, e = h * (1 - soft) + own_h * soft, e * (1 - soft) + own_e * soft
    return np.clip(h, 0, None), np.clip(e, 0, None)


def _nuclei(rng: Rng, node: Node, cells: Cells, lumen: Field, flow: Field) -> tuple[Field, Field]:
    """Haematoxylin of all nuclei, and eosin of the bodies that some cells have around theirs."""
    dark, small = rng.uniform(0.35, 0.85), rng.uniform(2.5, 3.9)
    wall = (node.vessel > 0) & (node.vessel < rng.uniform(2, 6))
    free = (node.depth > 0) & (node.vessel > 0) & ~node.nest & ~node.collagen
    open_sinus = node.sinus & ~node.nodule
    pulp = free & ~open_sinus & ~node.nodule & ~node.follicle
    lymphocyte = Cells(
        2 * small * rng.uniform(1.0, 1.4), small, dark, 0.1, pale=rng.uniform(0, 0.35), share=rng.uniform(0.75, 0.99)
    )
    centre = rng.uniform(1.15, 1.75) * small
    big = rng.uniform(4, 6.2)
    pale = dark * rng.uniform(0.35, 0.75)
    sparse = rng.uniform(0.02, 0.5)
    bodies = _put(rng, pulp, Cells(rng.uniform(12, 40), big, pale, 0.12, rng.uniform(0.1, 0.9), 0.5, 0.3))
    phagocytes = free & (node.nodule | open_sinus & (rng.random() < 0.7))
    nucleus = Cells(rng.uniform(9, 18), big, pale, 0.12, rng.uniform(0.1, 1.2), rng.uniform(0.2, 0.6), 0.3, 0.9)
    histiocytes = _put(rng, phagocytes, nucleus)
    kinds = [
        bodies,
        histiocytes,
        _put(rng, pulp & ~node.mantle, lymphocyte),
        _put(rng, pulp & node.mantle, Cells(2 * small * rng.uniform(0.92, 1.1), small, dark * 1.1, 0.08)),
        _put(rng, free & open_sinus, Cells(3.5 * small, small, dark, 0.12, share=sparse)),
        _put(rng, free & node.nodule, Cells(4 * small, small, dark, 0.12, share=sparse)),
        _put(rng, free & node.follicle & ~open_sinus, Cells(
            2 * centre * rng.uniform(0.98, 1.25), centre, dark * rng.uniform(0.45, 0.85), rng.uniform(0.08, 0.22),
            rng.uniform(0.05, 0.6), rng.uniform(0.2, 0.65), rng.uniform(0, 0.8))),
        _put(rng, free & node.follicle, Cells(4 * small, small, dark, 0.1, share=rng.uniform(0.1, 0.8))),
        _put(rng, node.collagen & ~node.nest, Cells(
            rng.uniform(9, 20), 3.4, dark * 0.8, 0.2, rng.uniform(2, 6), 0.2, share=0.8), flow),
        _put(rng, (node.collagen & ~node.nest), Cells(3.2 * small, small, dark, 0.1, share=sparse * 0.5)),
        _put(rng, wall & ~node.nest, Cells(rng.uniform(6, 9), rng.uniform(2.6, 4), dark * 0.75, 0.15, 0.9, 0.35)),
    ]  # fmt: skip
    if node.nest.any():
        inner = ndimage.distance_transform_edt(node.nest) > 0.45 * cells.radius
        full = np.asarray(inner) & (lumen < 0.4)
        kinds.append(_put(rng, full, cells))
        sick = Cells(cells.pitch * 4, 0.6 * cells.radius, 0.95, 0.3, 0.9, share=rng.uniform(0, 0.8), jitter=0.4)
        kinds.append(_put(rng, full, sick))  # mitoses and dying cells
        kinds.append(_put(rng, node.nest, Cells(rng.uniform(16, 50), small, dark, 0.1, share=rng.uniform(0, 1))))
    eosin = ndimage.gaussian_filter(np.maximum(bodies, histiocytes), 3.0) * rng.uniform(0, 0.8)
    return np.maximum.reduce(kinds), eosin


def _debris(rng: Rng, node: Node, h: Field, e: Field) -> tuple[Field, Field]:
    """Macrophages with bits of dead cells in germinal centres: pale holes with dark specks."""
    field = _blobs(rng, node.follicle, int(rng.integers(0, 16)), (5, 11), 0.1)
    hole = rise(-field, 0.4) * node.follicle * ~node.nest * rng.uniform(0.5, 1)
    specks = scatter(rng, (0.02 * hole).astype(np.float32))
    n = len(specks)
    dust = splat(h.shape, specks, rng.uniform(0.8, 2, (n, 2)), np.zeros(n), rng.uniform(0.3, 0.9, n))
    return h * (1 - 0.85 * hole) + dust, e * (1 - 0.4 * hole)


def _outside(rng: Rng, depth: Field, h: Field, e: Field) -> tuple[Field, Field]:
    """Fat, loose tissue or glass beyond the capsule."""
    shape = depth.shape
    keep = rise(depth, 0.6)
    h, e = h * keep, e * keep
    kind = rng.choice(["glass", "fat", "loose"], p=[0.35, 0.45, 0.2])
    if kind == "glass" or keep.min() > 0:
        return h, e
    reach = rng.uniform(20, 400)
    around = (1 - keep) * rise(depth + reach + 10 * noise(rng, shape, 20), 0.4)
    if kind == "fat":
        around = around * rise(rng.uniform(1.2, 3) - _borders(rng, shape, rng.uniform(34, 75)), 0.8)
    fibre = np.clip(1 + 0.6 * noise(rng, shape, 8, 1.2, rng.uniform(0, np.pi)), 0, None) if kind == "loose" else 1.0
    dots = _put(rng, around > 0.5, Cells(rng.uniform(9, 30), 2.6, 0.5, 0.15, 1.5, share=0.5))
    return h + around * 0.05 + dots, e + around * rng.uniform(0.08, 0.3) * fibre


def _faults(rng: Rng, node: Node, h: Field, e: Field) -> tuple[Field, Field]:
    """Blood, pigment, clefts, tears and folds."""
    shape = h.shape
    e = e + blood(rng, shape, rise(-node.vessel, 0.6) * rng.uniform(0, 1.2))
    if rng.random() < 0.15:
        where = rise(noise(rng, shape, rng.uniform(12, 40)) - rng.uniform(0.5, 1.8), 2) * (node.depth > 0)
        e = e + blood(rng, shape, where * rng.uniform(0.1, 0.8))
    if rng.random() < 0.1:  # coal dust
        where = rise(noise(rng, shape, rng.uniform(8, 25)) - rng.uniform(1, 2), 1) * (node.depth > 0)
        specks = scatter(rng, (rng.uniform(0.02, 0.15) * where).astype(np.float32))
        n = len(specks)
        coal = splat(shape, specks, rng.uniform(0.6, 1.6, (n, 2)), np.zeros(n), rng.uniform(0.8, 1.8, n))
        h, e = h + coal, e + 0.8 * coal
    if rng.random() < 0.3:  # the tissue shrank away from nests and follicles
        edge = np.asarray(ndimage.distance_transform_edt(~(node.nest if node.nest.any() else node.follicle)))
        width = rng.uniform(1, 6) * rise(noise(rng, shape, rng.uniform(12, 30)) - rng.uniform(-0.4, 1), 1.5)
        cleft = rise(width - edge, 0.8) * (edge > 0) * rng.uniform(0.5, 1)
        h, e = h * (1 - cleft), e * (1 - cleft)
    if rng.random() < 0.15:
        across = rng.uniform(1.5, 5)
        tear = noise(rng, shape, rng.uniform(14, 40), across, rng.uniform(0, np.pi)) - rng.uniform(1.7, 2.8)
        h, e = h * (1 - rise(tear, 3)), e * (1 - rise(tear, 3))
    if rng.random() < 0.06:
        fold = 1 + rng.uniform(0.4, 1) * rise(noise(rng, shape, 60, 5, rng.uniform(0, np.pi)) - 1.5, 3)
        h, e = h * fold, e * fold
    return h, e


def lymph(rng: Rng, label: NodeLabel, shape: tuple[int, int], margin: int) -> tuple[Field, Field, NDArray[np.int32]]:
    """Haematoxylin, eosin and nest numbers over the whole canvas.

    Args:
        rng: the source of randomness.
        label: the class, which decides whether there are nests.
        shape: (H, W) of the canvas, margin included.
        margin: pixels on each side that are cut off later; a tumour image has a nest within them.
    """
    node = _lay_out(rng, label, shape, margin)
    h, e, lumen, cells = _tumour(rng, node.nest)
    strands, flow = fibres(rng, shape, rng.uniform(0, np.pi))
    h, e = _ground(rng, node, (h, e), strands)
    h, e = _debris(rng, node, h, e)
    nuclei, bodies = _nuclei(rng, node, cells, lumen, flow)
    nuclei = nuclei * np.clip(1 + rng.uniform(0.05, 0.35) * noise(rng, shape, rng.uniform(0.7, 1.4)), 0.2, None)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    bend = rng.uniform(0, 0.9)
    crooked = [y + bend * noise(rng, shape, 3.5), x + bend * noise(rng, shape, 3.5)]
    nuclei = ndimage.map_coordinates(nuclei, crooked, order=1, mode="nearest")
    h, e = h + nuclei, e + bodies + 0.12 * nuclei
    h, e = _outside(rng, node.depth, h, e)
    h, e = _faults(rng, node, h, e)
    numbers = np.asarray(measure.label(node.nest & (node.depth > 0), connectivity=1)).astype(np.int32)
    return np.clip(h, 0, None).astype(np.float32), np.clip(e, 0, None).astype(np.float32), numbers
