"""A second painter of lymph nodes: whole slides with nuclei, in which the truth of metastatic nests is known.

It exists to judge what was trained on `histoloc.datasets.synthetic` by another hand. Its drawings are made as
decals: cells are polygons painted in RGB by Pillow, a few dozen of each kind, and pasted by the thousand. It shares
no code, no colours and no distributions with the scenes of the package. It was committed before the scene of nests
existed. Two rules keep the measure honest: nothing under src imports this file or is fitted to its drawings, and
this file is not changed any more.

A slide is 0.5 µm per pixel: glass, fat, capsule with trabeculae, sinuses, cortex full of lymphocytes, germinal
centres with their mantle, vessels, and in tumour slides nests from a few dozen micrometres to sheets.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

MPP = 0.5
_COARSE = 4  # pixels of the slide per pixel of the plan
_UM = 1 / (MPP * _COARSE)  # pixels of the plan per micrometre
_SS = 4  # decals are drawn so many times larger
_TILE = 256
GLASS, FAT, CAPSULE, CORTEX, SINUS, MANTLE, GERMINAL, WALL, LUMEN, NEST, STRAND = range(11)
Colour = tuple[int, int, int]
# Colour between the cells, and strength of its clouds, by zone.
_GROUND: dict[int, tuple[Colour, float]] = {
    GLASS: ((241, 241, 243), 0.6), FAT: ((240, 239, 243), 1.0), CAPSULE: ((226, 150, 184), 9.0),
    CORTEX: ((199, 163, 204), 8.0), SINUS: ((232, 212, 228), 7.0), MANTLE: ((189, 152, 199), 7.0),
    GERMINAL: ((206, 171, 207), 7.0), WALL: ((222, 148, 186), 7.0), LUMEN: ((238, 232, 238), 2.0),
    NEST: ((216, 168, 199), 8.0),  # each slide sets a colour of its own
    STRAND: ((226, 156, 190), 9.0),
}  # fmt: skip


Decal = tuple[NDArray[np.float32], NDArray[np.float32]]  # to paste: (h, w, 3) colours, (h, w, 1) opacity in [0, 1]


@dataclass(frozen=True)
class LymphSlide:
    """A painted slide."""

    path: Path
    truth: NDArray[np.bool_]  # (H, W) at level 0, true in nests of tumour
    zones: NDArray[np.uint8]  # (H / 4, W / 4), which tissue lies where, by the constants above


def _clouds(
    rng: np.random.Generator, shape: tuple[int, int], grain: float, order: Literal[1, 3] = 3
) -> NDArray[np.float32]:
    """Uneven clouds of about zero mean and unit spread: random values on a lattice, enlarged by splines."""
    rows, columns = (int(np.ceil(side / grain)) + 4 for side in shape)
    lattice = rng.normal(0, 1.35, (rows, columns)).astype(np.float32)
    y0, x0 = rng.uniform(1, 2, 2)
    y, x = np.arange(shape[0]) / grain + y0, np.arange(shape[1]) / grain + x0
    return ndimage.map_coordinates(lattice, np.meshgrid(y, x, indexing="ij"), order=order).astype(np.float32)


def _blob(
    rng: np.random.Generator, shape: tuple[int, int], centre: tuple[float, float], radius: float, rough: float = 0.25
) -> NDArray[np.float32]:
    """(H, W): below 1 inside a lumpy ellipse."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    turn, aspect = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.2))
    dy, dx = y - centre[0], x - centre[1]
    u, v = (dx * np.cos(turn) + dy * np.sin(turn)) * aspect, (dy * np.cos(turn) - dx * np.sin(turn)) / aspect
    angle = np.arctan2(v, u)
    wave = sum(rng.normal(0, rough / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7))
    return (np.hypot(u, v) / (radius * (1 + np.clip(wave, -0.6, 0.6)))).astype(np.float32)


def _plan(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Which tissue lies where in a node without tumour."""
    side = min(shape)
    node = _blob(rng, shape, (shape[0] * rng.uniform(0.42, 0.58), shape[1] * rng.uniform(0.42, 0.58)), 0.42 * side)
    node += 0.025 * _clouds(rng, shape, 90 * _UM)
    inside = node < 1
    depth = np.asarray(ndimage.distance_transform_edt(inside)) / _UM  # µm
    away = np.asarray(ndimage.distance_transform_edt(~inside)) / _UM
    zones = np.where(inside, CORTEX, GLASS).astype(np.uint8)
    zones[(away > 0) & (away < rng.uniform(60, 260) + 60 * _clouds(rng, shape, 150 * _UM))] = FAT
    rind = rng.uniform(14, 36) * (1 + 0.3 * _clouds(rng, shape, 90 * _UM))
    gap = np.clip(rng.uniform(4, 20) + 9 * _clouds(rng, shape, 70 * _UM), 0, None)
    zones[inside & (depth < rind + gap)] = SINUS
    hilum = _blob(rng, shape, (shape[0] / 2, shape[1] / 2), side * rng.uniform(0.08, 0.2))
    wide = rng.choice([0.3, 0.45, 0.9])  # the last: sinuses packed with histiocytes
    channels = np.abs(_clouds(rng, shape, rng.uniform(45, 70) * _UM)) < wide
    zones[(hilum < 1) & inside & channels] = SINUS
    for _ in range(_number(rng, shape, 3, 10)):
        y, x = _somewhere(rng, inside & (depth > 110) & (depth < 420) & (hilum > 1.2))
        follicle = _blob(rng, shape, (y, x), min(rng.uniform(70, 190) * _UM, side / 7), 0.12)
        zones[(follicle < 1.25) & inside & (depth > rind + gap) & (zones != GERMINAL)] = MANTLE
        zones[(follicle < 1) & inside & (depth > rind + gap)] = GERMINAL
    septa = np.abs(_clouds(rng, shape, 220 * _UM)) < rng.uniform(0.012, 0.035)
    zones[septa & inside & (depth < rng.uniform(80, 320))] = CAPSULE
    zones[inside & (depth < rind)] = CAPSULE
    for _ in range(_number(rng, shape, 8, 26)):
        y, x = _somewhere(rng, inside & (depth > 60) & (zones != GERMINAL))
        vessel = _blob(rng, shape, (y, x), rng.uniform(7, 34) * _UM, 0.2)
        zones[(vessel < 1.4) & (zones != CAPSULE)] = WALL
        zones[vessel < 0.9] = LUMEN
    return zones


def _enlarge(plan: NDArray) -> NDArray[np.float32]:
    return ndimage.zoom(plan.astype(np.float32), _COARSE, order=1, mode="nearest", grid_mode=True)


def _number(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> int:
    """How many of a thing that a slide of 1.28 mm a side has `low` to `high` of."""
    return max(round(rng.integers(low, high) * shape[0] * shape[1] / 640**2), 1)


def _somewhere(rng: np.random.Generator, where: NDArray[np.bool_]) -> tuple[float, float]:
    places = np.argwhere(where)
    y, x = places[rng.integers(len(places))] if len(places) else np.array(where.shape) / 2
    return float(y), float(x)


def _invade(rng: np.random.Generator, zones: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put nests into a plan: small clusters, groups of nests, or sheets that strands of collagen part."""
    zones = zones.copy()
    tissue = ~np.isin(zones, (GLASS, FAT))
    home = tissue & (zones != CAPSULE)
    way = rng.choice(["clusters", "nests", "sheets", "mixed"])
    wanted, side = [], min(zones.shape)
    if way in ("clusters", "mixed"):
        wanted += list(rng.uniform(28, 75, _number(rng, zones.shape, 4, 12)))
    if way in ("nests", "mixed"):
        wanted += list(rng.uniform(45, 140, _number(rng, zones.shape, 8, 26)))
    if way in ("sheets", "mixed"):
        wanted += list(rng.uniform(180, 420, _number(rng, zones.shape, 1, 4)))
    depth = np.asarray(ndimage.distance_transform_edt(home)) / _UM
    focus = _somewhere(rng, home)
    y, x = np.mgrid[: zones.shape[0], : zones.shape[1]]
    near = home & (np.hypot(y - focus[0], x - focus[1]) < 450 * _UM)
    for radius in wanted:
        region = near if way == "nests" and near.any() else home & (depth < 260) if rng.random() < 0.5 else home
        nest = _blob(rng, zones.shape, _somewhere(rng, region), min(radius * _UM, side / 4), 0.3)
        nest += 0.08 * _clouds(rng, zones.shape, 22 * _UM)
        mask = (nest < 1) & home
        zones[mask] = NEST
        if radius > 150:
            bands = np.abs(_clouds(rng, zones.shape, rng.uniform(60, 110) * _UM)) < rng.uniform(0.03, 0.14)
            zones[mask & bands] = STRAND
    pieces, _ = ndimage.label(zones == NEST)  # what strands and the capsule leave over is no nest
    small = np.bincount(pieces.ravel()) < (18 * _UM) ** 2 * np.pi
    zones[small[pieces] & (pieces > 0)] = STRAND
    return zones


def _outline(
    rng: np.random.Generator, long: float, short: float, rough: float, turn: float
) -> list[tuple[float, float]]:
    """A closed, lumpy, turned outline about (0, 0), in pixels of the enlarged decal."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    wave = sum(rng.normal(0, rough / (k - 1)) * np.cos(k * t + rng.uniform(0, 6.3)) for k in range(2, 6))
    r = np.clip(1 + wave, 0.6, 1.5)
    x, y = long * r * np.cos(t) * _SS, short * r * np.sin(t) * _SS
    return list(zip(x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), strict=True))


@dataclass(frozen=True)
class Cell:
    """How one kind of cell looks; lengths in µm, each nucleus draws its own."""

    size: float  # mean diameter of the nucleus
    spread: float  # of the diameter, as a share
    aspect: tuple[float, float]  # long to short axis, from and to
    rough: float  # irregularity of the outline
    rim: Colour  # of membrane and chromatin
    inner: Colour  # between the chromatin
    clumps: float  # share of the inside that chromatin covers
    nucleolus: float = 0.0  # expected number
    body: tuple[Colour, float] | None = None  # of the cytoplasm, and how far it reaches


def _decals(rng: np.random.Generator, cell: Cell) -> tuple[Decal, Decal]:
    """Draw body and nucleus of one cell, enlarged, and bring them to size."""
    diameter = cell.size / MPP * float(np.clip(np.exp(rng.normal(0, cell.spread)), 0.55, 1.7))
    aspect = rng.uniform(*cell.aspect)
    long, short = diameter / 2 * np.sqrt(aspect), diameter / 2 / np.sqrt(aspect)
    extra = cell.body[1] / MPP if cell.body else 0.0
    side = 2 * (int(np.ceil(1.5 * long + 1.3 * extra)) + 2) * _SS
    turn = rng.uniform(0, np.pi)
    nucleus = _polygon(side, _outline(rng, long, short, cell.rough, turn))
    inside = np.asarray(nucleus, np.float32) / 255
    soft = np.asarray(nucleus.filter(ImageFilter.GaussianBlur(_SS * 0.9)), np.float32) / 255
    chromatin = np.clip(2.2 * (1 - soft), 0, 1)
    clumps = _clouds(rng, (side, side), 1.6 * _SS, 1) > np.quantile(rng.normal(size=200), 1 - cell.clumps)
    chromatin = np.maximum(chromatin, ndimage.gaussian_filter(clumps.astype(np.float32), _SS * 0.35) * 0.8)
    colour = np.asarray(cell.inner) + (np.asarray(cell.rim) - cell.inner) * chromatin[..., None]
    dots = Image.new("L", (side, side))
    for _ in range(min(rng.poisson(cell.nucleolus), 3)):
        x, y = side / 2 + rng.normal(0, 0.22 * short * _SS, 2)
        r = rng.uniform(0.9, 2.0) * _SS
        ImageDraw.Draw(dots).ellipse((x - r, y - r, x + r, y + r), fill=255)
    dot = np.asarray(dots, np.float32)[..., None] / 255
    colour = colour * (1 - dot) + np.asarray((96, 42, 122)) * dot + rng.normal(0, 5) + rng.normal(0, 2, 3)
    body = _polygon(side, _outline(rng, long + extra, short + extra, cell.rough + 0.06, turn))
    around = np.asarray(body, np.float32) / 255 * (cell.body is not None)
    edge = np.clip(around - np.asarray(body.filter(ImageFilter.GaussianBlur(_SS)), np.float32) / 255, 0, 1)
    plasma = np.asarray(cell.body[0] if cell.body else (0, 0, 0)) + rng.normal(0, 5, 3) - 45 * edge[..., None]
    return _shrunk(plasma, around * 0.75), _shrunk(colour, inside * rng.uniform(0.85, 0.98))


def _polygon(side: int, points: list[tuple[float, float]]) -> Image.Image:
    picture = Image.new("L", (side, side))
    ImageDraw.Draw(picture).polygon([(x + side / 2, y + side / 2) for x, y in points], fill=255)
    return picture


def _shrunk(colour: NDArray[np.floating], alpha: NDArray[np.floating]) -> Decal:
    """Bring an enlarged drawing to size, colours weighted by opacity."""
    side = alpha.shape[0] // _SS
    layers = np.concatenate([colour * alpha[..., None], alpha[..., None]], axis=2)
    small = layers.reshape(side, _SS, side, _SS, 4).mean(axis=(1, 3)).astype(np.float32)
    return small[..., :3] / np.maximum(small[..., 3:], 1e-3), small[..., 3:]


def _cells(rng: np.random.Generator) -> dict[str, Cell]:
    """The cells of one slide: every slide draws sizes and colours of its own."""
    dark = int(rng.integers(-12, 13))
    grade = rng.uniform(0, 1)  # from pale and even to dark and uneven
    rim = (int(112 - 22 * grade), int(78 - 14 * grade), int(150 - 16 * grade))
    inner = (int(184 - 44 * grade), int(152 - 50 * grade), int(202 - 32 * grade))
    size = rng.uniform(12, 16.5)
    hue = rng.uniform(0, 1)  # of the cytoplasm, from pink to purple
    plasma = (int(224 - 30 * hue), int(168 - 12 * hue), int(194 + 10 * hue))
    return {
        "lymphocyte": Cell(
            rng.uniform(6.2, 7.4), 0.08, (1, 1.2), 0.03, (68 + dark, 44 + dark, 108 + dark),
            (104 + dark, 76 + dark, 142 + dark), 0.4,
        ),
        "centre": Cell(rng.uniform(8.5, 10.5), 0.14, (1, 1.35), 0.07, (98, 70, 140), (160, 128, 186), 0.25, 0.8,
                       ((204, 168, 206), 0.8)),
        "macrophage": Cell(11, 0.12, (1.1, 1.5), 0.06, (122, 92, 158), (192, 168, 208), 0.12, 0.5,
                           ((233, 219, 231), 6)),
        "histiocyte": Cell(10.5, 0.12, (1.2, 1.8), 0.07, (112, 84, 152), (180, 152, 200), 0.15, 0.3,
                           ((226, 186, 210), 3)),
        "endothelium": Cell(8, 0.15, (2.2, 3.6), 0.04, (92, 62, 134), (140, 108, 170), 0.25),
        "fibre": Cell(8, 0.2, (3, 5.5), 0.04, (94, 60, 134), (130, 94, 162), 0.3),
        "plasma": Cell(7.2, 0.08, (1, 1.15), 0.03, (74, 48, 114), (132, 100, 162), 0.45, 0, ((190, 142, 196), 2.4)),
        "tumour": Cell(size, rng.uniform(0.1, 0.24), (1, rng.uniform(1.25, 1.7)), rng.uniform(0.04, 0.12), rim,
                       inner, rng.uniform(0.1, 0.3), rng.uniform(0.6, 1.8), (plasma, rng.uniform(1.5, 4.5))),
        "blood": Cell(6.6, 0.05, (1, 1.3), 0.04, (206, 92, 118), (220, 116, 136), 0.2),
    }  # fmt: skip


def _lattice(rng: np.random.Generator, where: NDArray[np.bool_], spacing: float) -> NDArray[np.float64]:
    """(N, 2) y, x in pixels of the slide: a shaken triangular lattice over the zones that are true."""
    step = spacing / MPP
    rows, columns = (where.shape[i] * _COARSE / step for i in (0, 1))
    y, x = np.mgrid[0 : int(rows / 0.866) + 2, 0 : int(columns) + 2].astype(np.float64)
    x += 0.5 * (y % 2)
    points = np.stack([y.ravel() * 0.866, x.ravel()], 1) * step
    points += rng.uniform(-0.32, 0.32, points.shape) * step
    at = np.floor(points / _COARSE).astype(int)
    valid = ((at >= 0) & (at < where.shape)).all(1)
    points, at = points[valid], at[valid]
    points = points[where[at[:, 0], at[:, 1]]]
    return points[rng.permutation(len(points))]


def _paste(
    canvas: NDArray[np.float32], cells: list[tuple[Decal, Decal]], points: NDArray, rng: np.random.Generator
) -> None:
    """Paste a cell at each point, turned by quarters: all bodies, then all nuclei."""
    which, turns = rng.integers(len(cells), size=len(points)), rng.integers(4, size=len(points))
    for layer in range(2):
        for (y, x), number, turn in zip(points.astype(int), which, turns, strict=True):
            colour, alpha = (np.rot90(part, turn) for part in cells[number][layer])
            side = colour.shape[0]
            top, left = y - side // 2, x - side // 2
            t, l = max(top, 0), max(left, 0)  # noqa: E741
            b, r = min(top + side, canvas.shape[0]), min(left + side, canvas.shape[1])
            box = slice(t - top, b - top), slice(l - left, r - left)
            canvas[t:b, l:r] += alpha[box] * (colour[box] - canvas[t:b, l:r])


def _ground(rng: np.random.Generator, zones: NDArray[np.uint8], plasma: Colour) -> NDArray[np.float32]:
    """What lies between the cells, (H, W, 3) at level 0; in nests it is the cells' cytoplasm."""
    shape = (zones.shape[0] * _COARSE, zones.shape[1] * _COARSE)
    table, strength = np.zeros((11, 3), np.float32), np.zeros(11, np.float32)
    for zone, (colour, clouds) in _GROUND.items():
        table[zone], strength[zone] = colour, clouds
    table[NEST] = plasma
    large = np.kron(zones, np.ones((_COARSE, _COARSE), np.uint8))
    texture = 0.6 * _clouds(rng, shape, 9) + 0.6 * _clouds(rng, shape, 3) + 0.7 * _clouds(rng, shape, 60)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    flow = x * rng.uniform(-0.2, 0.2) + y * rng.uniform(0.2, 0.4) + 14 * _clouds(rng, shape, 80)
    texture = np.where(np.isin(large, (CAPSULE, STRAND, WALL)), np.sin(flow) + 0.5 * texture, texture)
    canvas = table[large]
    for i in range(3):
        canvas[..., i] = ndimage.gaussian_filter(canvas[..., i], 2.2)
    canvas += (texture * strength[large])[..., None] * np.array([0.6, 1.0, 0.7], np.float32)
    fat = _enlarge(zones == FAT) > 0.5
    walls = _froth(rng, shape, rng.uniform(45, 75) / MPP)
    canvas[fat & walls] = (214, 164, 192)
    return canvas


def _froth(rng: np.random.Generator, shape: tuple[int, int], spacing: float) -> NDArray[np.bool_]:
    """Walls between fat cells: where the nearest of scattered points changes, found at the plan's scale."""
    small = shape[0] // _COARSE, shape[1] // _COARSE
    seeds = np.ones(small, bool)
    number = max(int(small[0] * small[1] / (spacing / _COARSE) ** 2), 2)
    seeds[rng.integers(small[0], size=number), rng.integers(small[1], size=number)] = False
    nearest = ndimage.distance_transform_edt(seeds, return_distances=False, return_indices=True)
    owner = nearest[0].astype(np.int64) * small[1] + nearest[1]
    wall = np.zeros(small, np.float32)
    wall[1:] += owner[1:] != owner[:-1]
    wall[:, 1:] += owner[:, 1:] != owner[:, :-1]
    return _enlarge(ndimage.gaussian_filter(np.clip(wall, 0, 1), 0.8)) > 0.22


def _populate(
    rng: np.random.Generator, canvas: NDArray[np.float32], zones: NDArray[np.uint8], kinds: dict[str, Cell]
) -> None:
    """Paste all cells of a slide onto the ground."""
    decals = {name: [_decals(rng, cell) for _ in range(36)] for name, cell in kinds.items()}
    inner = {zone: np.asarray(ndimage.binary_erosion(zones == zone)) for zone in (NEST, GERMINAL)}

    def put(name: str, where: NDArray[np.bool_], spacing: float, share: float = 1.0) -> None:
        points = _lattice(rng, where, spacing)
        _paste(canvas, decals[name], points[: round(len(points) * share)], rng)

    small = kinds["lymphocyte"].size
    tumour = kinds["tumour"]
    put("blood", zones == LUMEN, 6.0, rng.uniform(0.0, 0.9))
    put("fibre", np.isin(zones, (CAPSULE, STRAND)), 15, 0.6)
    put("endothelium", zones == WALL, 9, 0.8)
    put("histiocyte", zones == SINUS, 15, rng.uniform(0.3, 0.9))
    put("histiocyte", zones == CORTEX, 24, rng.uniform(0.1, 0.6))
    put("plasma", zones == CORTEX, 22, rng.uniform(0, 0.6))
    put("macrophage", inner[GERMINAL], 48, rng.uniform(0.2, 0.9))
    put("centre", zones == GERMINAL, kinds["centre"].size * rng.uniform(1.05, 1.25), 0.93)
    put("lymphocyte", zones == GERMINAL, 20, rng.uniform(0.2, 0.9))
    put("tumour", inner[NEST], tumour.size * rng.uniform(1.0, 1.3), rng.uniform(0.85, 0.98))
    put("lymphocyte", zones == NEST, 30, rng.uniform(0, 0.5))
    put("lymphocyte", zones == CORTEX, small * rng.uniform(1.1, 1.35), rng.uniform(0.8, 0.97))
    put("lymphocyte", zones == MANTLE, small * rng.uniform(1.02, 1.15), 0.96)
    put("lymphocyte", zones == SINUS, 14, rng.uniform(0.1, 0.7))
    put("lymphocyte", np.isin(zones, (CAPSULE, STRAND)), 26, rng.uniform(0.1, 0.5))


def _scan(rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """What the scanner makes of it: a cast of its own, a soft lens, grain and JPEG."""
    light = np.clip(canvas, 1, 254) / 243
    gamma = np.exp(rng.normal(0, 0.16) + rng.normal(0, 0.09, 3))
    light = np.clip(light, 0.01, None) ** gamma * rng.uniform(236, 248) * (1 + rng.normal(0, 0.008, 3))
    width = rng.uniform(0.4, 0.8)
    for i in range(3):
        light[..., i] = ndimage.gaussian_filter(light[..., i], width)
    light += rng.normal(0, rng.uniform(0.8, 2.5), light.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(light), 0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=int(rng.integers(75, 92))
    )
    return np.asarray(Image.open(file))


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    """A pyramidal TIFF in tiles, with its scale."""
    with tifffile.TiffWriter(path) as file:
        for factor in (1, 2, 4, 8):
            h, w = image.shape[0] // factor, image.shape[1] // factor
            level = image[: h * factor, : w * factor].reshape(h, factor, w, factor, 3).mean(axis=(1, 3))
            scale = 1e4 / (MPP * factor)
            file.write(
                np.rint(level).astype(np.uint8), tile=(_TILE, _TILE), compression="zlib", photometric="rgb",
                metadata=None, subfiletype=int(factor > 1), resolution=(scale, scale), resolutionunit="CENTIMETER",
            )  # fmt: skip


def paint_slide(path: Path, *, tumour: bool, seed: int, size: tuple[int, int] = (2560, 2560)) -> LymphSlide:
    """Paint one slide, with metastatic nests or without; a pure function of its arguments.

    Args:
        path: the TIFF that is written.
        tumour: whether the node holds nests.
        seed: of all randomness.
        size: (height, width) of level 0, multiples of 8.
    """
    rng = np.random.default_rng([20261126, seed, int(tumour)])
    zones = _plan(rng, (size[0] // _COARSE, size[1] // _COARSE))
    if tumour:
        zones = _invade(rng, zones)
    kinds = _cells(rng)
    canvas = _ground(rng, zones, plasma=(kinds["tumour"].body or ((0, 0, 0), 0))[0])
    _populate(rng, canvas, zones, kinds)
    _write(path, _scan(rng, canvas))
    return LymphSlide(path, _enlarge(zones == NEST) > 0.5, zones)
