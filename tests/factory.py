"""Slides for tests: pyramidal tiled TIFFs of any size, quick to write, small on disk, with known regions."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]

TILE = 256
_PERIOD = 32  # of the texture; deflate's window then holds all of it, so that a tile takes about 2 KB
# Colour and strength of the texture by kind.
KINDS: dict[str, tuple[tuple[int, int, int], int]] = {
    "glass": ((243, 243, 242), 1),
    "tissue": ((225, 165, 200), 22),
    "pale": ((238, 216, 230), 5),
    "metastasis": ((140, 85, 160), 26),
    "hole": ((243, 243, 242), 1),
    "gap": ((255, 255, 255), 0),
    "border": ((4, 4, 5), 2),
    "dust": ((150, 150, 148), 12),
    "pen_black": ((35, 35, 38), 6),
    "pen_blue": ((40, 70, 175), 6),
    "pen_green": ((35, 130, 70), 6),
    "pen_red": ((205, 45, 50), 6),
}
_NAMES = list(KINDS)


@dataclass(frozen=True)
class Region:
    """A polygon of one kind; `vertices` are (x, y) in pixels of level 0, as shapely takes them."""

    kind: str
    vertices: tuple[Point, ...]


def box(kind: str, x: float, y: float, width: float, height: float) -> Region:
    return Region(kind, ((x, y), (x + width, y), (x + width, y + height), (x, y + height)))


def blob(kind: str, x: float, y: float, radius: float, seed: int = 0, corners: int = 24) -> Region:
    """A star-shaped polygon about (x, y), between 0.75 and 1.25 of a radius."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    rng = np.random.default_rng(seed)
    radii = radius * (1 + 0.15 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.1 * rng.uniform(-1, 1, corners))
    points = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
    return Region(kind, tuple((round(float(a), 1), round(float(b), 1)) for a, b in points))


@cache
def _texture(factor: int) -> NDArray[np.uint8]:
    """(kinds, period, period, 3): each kind's texture as a level reduced by `factor` shows it."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-2, 3, (_PERIOD, _PERIOD, 1)) / 2  # few values compress well
    textures = []
    for colour, strength in KINDS.values():
        full = np.clip(np.asarray(colour) + strength * noise, 0, 255)
        side = min(factor, _PERIOD)
        small = full.reshape(_PERIOD // side, side, _PERIOD // side, side, 3).mean(axis=(1, 3))
        textures.append(np.tile(np.rint(small).astype(np.uint8), (side, side, 1)))
    return np.stack(textures)


def kinds_at(regions: Sequence[Region], x: int, y: int, width: int, height: int, factor: int = 1) -> NDArray[np.uint8]:
    """Index into KINDS of each pixel of a box at a level, later regions over earlier ones; (height, width)."""
    canvas = Image.new("L", (width, height), _NAMES.index("glass"))
    draw = ImageDraw.Draw(canvas)
    for region in regions:
        # The vertex (0, 0) is the corner of a pixel, Pillow's is its centre.
        points = [(a / factor - x - 0.5, b / factor - y - 0.5) for a, b in region.vertices]
        xs, ys = zip(*points, strict=True)
        if max(xs) >= 0 and max(ys) >= 0 and min(xs) <= width and min(ys) <= height:
            draw.polygon(points, fill=_NAMES.index(region.kind))
    return np.asarray(canvas)


def render(regions: Sequence[Region], x: int, y: int, width: int, height: int, factor: int = 1) -> NDArray[np.uint8]:
    """Pixels of a box of a level, (height, width, 3): the truth that a reader must give."""
    kinds = kinds_at(regions, x, y, width, height, factor)
    rows, columns = np.ogrid[y : y + height, x : x + width]
    return _texture(factor)[kinds, rows % _PERIOD, columns % _PERIOD]


def _grid(regions: Sequence[Region], rows: int, columns: int, factor: int) -> NDArray[np.int64]:
    """The kind of each tile of a level, or -1 where a polygon's edge may cross it."""
    fine = 8  # cells per tile and axis; edges are drawn wider than what rounding to cells can hide
    kinds = kinds_at(regions, 0, 0, columns * fine, rows * fine, factor * TILE // fine).astype(np.int64)
    canvas = Image.new("L", (columns * fine, rows * fine))
    for region in regions:
        points = [(a / factor / TILE * fine, b / factor / TILE * fine) for a, b in region.vertices]
        ImageDraw.Draw(canvas).line([*points, points[0]], fill=1, width=5)
    crossed = np.asarray(canvas).reshape(rows, fine, columns, fine).any(axis=(1, 3))
    return np.where(crossed, -1, kinds[fine // 2 :: fine, fine // 2 :: fine])


def _tiles(regions: Sequence[Region], width: int, height: int, factor: int) -> Iterator[bytes]:
    """Deflated tiles of a level in rows; tiles of one kind are deflated once."""
    uniform: dict[int, bytes] = {}
    for row, kinds in enumerate(_grid(regions, -(-height // TILE), -(-width // TILE), factor)):
        for column, kind in enumerate(kinds):
            data = uniform.get(int(kind))
            if data is None:
                pixels = render(regions, column * TILE, row * TILE, TILE, TILE, factor)
                data = zlib.compress(pixels.tobytes(), 9 if kind >= 0 else 5)
                if kind >= 0:
                    uniform[int(kind)] = data
            yield data


def make_slide(
    path: Path,
    size: tuple[int, int],
    mpp: float | None,
    regions: Sequence[Region],
    *,
    downsamples: Sequence[int] = (1, 4, 16),
    pen: Region | None = None,
    border: int = 0,
    gap: tuple[int, int, int, int] | None = None,
) -> tuple[Region, ...]:
    """Write a pyramidal, tiled, deflated TIFF that OpenSlide opens.

    Args:
        path: the file, `.tif`.
        size: (width, height) of level 0.
        mpp: micrometres per pixel, written as resolution tags; None writes no tags of use.
        regions: polygons, painted in order on glass.
        downsamples: powers of two; 1 alone writes no pyramid.
        pen: painted over the regions, as `blob("pen_blue", ...)` or `box("pen_green", ...)`.
        border: width of a black border on all sides, in pixels of level 0.
        gap: (x, y, width, height) of a pure white gap as scanners leave between pieces.

    Returns:
        All regions as painted: the truth.
    """
    width, height = size
    painted = [*regions, *([pen] if pen else [])]
    if gap:
        painted.append(box("gap", *gap))
    if border:
        painted += [
            box("border", 0, 0, width, border), box("border", 0, height - border, width, border),
            box("border", 0, 0, border, height), box("border", width - border, 0, border, height),
        ]  # fmt: skip
    with tifffile.TiffWriter(path) as file:
        for factor in downsamples:
            shape = (-(-height // factor), -(-width // factor), 3)
            file.write(
                _tiles(painted, shape[1], shape[0], factor),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="rgb",
                metadata=None,
                subfiletype=int(factor > 1),
                resolution=(1e4 / (mpp * factor), 1e4 / (mpp * factor)) if mpp else None,
                resolutionunit="CENTIMETER" if mpp else None,
            )
    return tuple(painted)
