"""Slides at any scale: micrometres per pixel is the only unit, and no scale is taken in silence."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histoloc.errors import InputError
from histoloc.slides.formats import COARSEST_MPP, MPP_NOTE, NEAR, Source, open_source
from histoloc.types import Origin

UPSAMPLING = 1.1  # scales down to level 0's divided by this are made by interpolation, finer ones refused
_BLOCK = 2048  # side in pixels of what is decoded at a time, which bounds the memory


class Level(NamedTuple):
    """One stored resolution of a slide.

    Attributes:
        width: in pixels.
        height: in pixels.
        downsample: pixels of level 0 per pixel of this level.
        mpp: micrometres per pixel.
    """

    width: int
    height: int
    downsample: float
    mpp: float


class Slide:
    """An open slide; made by `open_slide`.

    It may be pickled, used by several threads at once and carried over a fork: each process opens the file for
    itself. Memory stays bounded (about 150 MB) whatever the slide's size, except for PNG and JPEG, which are
    decoded whole, and for the array that `read` returns.

    Attributes:
        path: the file.
        width: of level 0 in pixels.
        height: of level 0 in pixels.
        mpp: micrometres per pixel of level 0.
        user_mpp: whether the mpp was given by the user, rather than by the file.
        notes: where the file, or the file and the user, say two scales; one sentence each.
        bounds: (x, y) of the part that was scanned, in pixels of the whole level 0; (0, 0) where the file does not say.
        levels: the stored resolutions, finest first.
        format: OpenSlide's vendor name, or tiff, png, jpeg and the like.
        properties: what the file says of itself.
    """

    def __init__(
        self,
        path: Path,
        mpp: float | None = None,
        option: str = "--mpp",
        origin: Origin = "level0",
        *,
        opened: Callable[[Path], Source] = open_source,
    ) -> None:
        """Open `path`; see `open_slide`. `opened` gives its pixels, by default those of the file."""
        self.path = path
        self._opened = opened
        self._sources: dict[int, Source] = {}
        self._closed = False
        source = self._source()
        try:
            self.format, self.properties = source.format, source.properties
            self.mpp, self.user_mpp, self.notes = _scale(path, source, mpp, option)
            whole = source.sizes[0]
            if 0 in whole:
                raise InputError(f"{path}: is damaged, it has no pixels; copy it again")
            x, y, width, height = _bounds(source.properties, whole)
            self.bounds = x, y
            scales = [_downsample(whole, size) for size in source.sizes]
            self._indices = [i for i, scale in enumerate(scales) if scale]  # another aspect ratio is no level
            self._stored = tuple(Level(*source.sizes[i], s, self.mpp * s) for i, s in enumerate(scales) if s)
            self._shift, (self.width, self.height), self.levels = (0, 0), whole, self._stored
            if origin == "bounds" and (width, height) != whole:
                self._shift, self.width, self.height = (x, y), width, height
                scales = (level.downsample for level in self._stored)
                sizes = ((max(1, round(width / scale)), max(1, round(height / scale))) for scale in scales)
                self.levels = tuple(Level(*size, *level[2:]) for size, level in zip(sizes, self._stored, strict=True))
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of level 0 in pixels."""
        return self.width, self.height

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}}

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r}, {self.width}x{self.height} px, {self.mpp:g} µm/px)"

    def close(self) -> None:
        """Release the file in this process; reading afterwards is a ValueError."""
        self._closed = True
        if (source := self._sources.pop(os.getpid(), None)) is not None:
            source.close()

    def _source(self) -> Source:
        if self._closed:
            raise ValueError(f"{self.path}: the slide was closed")
        process = os.getpid()
        if process not in self._sources:
            # No lock, since a fork could copy it locked; a thread that comes second closes what it opened.
            own = self._opened(self.path)
            if self._sources.setdefault(process, own) is not own:
                own.close()
        return self._sources[process]

    def level_for(self, mpp: float) -> int:
        """Index in `levels` of what is read for a scale: a level within 1 %, or else the one just finer.

        Raises:
            InputError: the scale is not positive, or finer than level 0 by more than 10 %.
        """
        if not 0 < mpp < math.inf:
            raise InputError(f"mpp {mpp:g}: give a positive number of micrometres per pixel")
        nearest = min(range(len(self.levels)), key=lambda i: abs(self.levels[i].mpp / mpp - 1))
        if abs(self.levels[nearest].mpp / mpp - 1) <= NEAR:
            return nearest
        if mpp < self.mpp / UPSAMPLING:
            raise InputError(
                f"{self.path}: was scanned at {self.mpp:.4g} µm/px and cannot be enlarged to {mpp:.4g} µm/px; "
                f"give {self.mpp:.4g} or more"
            )
        return max((i for i, level in enumerate(self.levels) if level.mpp < mpp), default=0)

    def _level_at(self, mpp: float) -> tuple[int, float]:
        """What is read for a scale: index of the level, and its pixels per pixel of the scale, 1 where near enough."""
        index = self.level_for(mpp)
        level_mpp = self.levels[index].mpp
        return index, 1.0 if abs(level_mpp / mpp - 1) <= NEAR else mpp / level_mpp

    def size_at(self, mpp: float) -> tuple[int, int]:
        """(width, height) in pixels of the whole slide as `read` gives it at a scale.

        Raises:
            InputError: as `level_for`.
        """
        index, ratio = self._level_at(mpp)
        level = self.levels[index]
        return max(1, round(level.width / ratio)), max(1, round(level.height / ratio))

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> NDArray[np.uint8]:
        """Read a region at a scale.

        A level within 1 % of the scale is read as it is, from its pixel that is nearest to (x, y). Otherwise the
        level just finer is resampled with an antialiasing filter (Hamming), whose result does not depend on how
        a slide is cut into regions, but for rounding.

        Args:
            x: left edge in pixels of level 0; may lie outside the slide.
            y: top edge in pixels of level 0.
            width: in pixels of the wanted scale, at least 1.
            height: in pixels of the wanted scale, at least 1.
            mpp: the wanted scale in micrometres per pixel, from 1/1.1 of level 0's upwards.

        Returns:
            (height, width, 3) uint8 RGB. White outside the slide, behind transparency, and where no pixels are
            stored. Colours are the file's; no colour profile is applied.

        Raises:
            InputError: an empty region, a scale that the slide does not have, or damaged pixels.
        """
        if width < 1 or height < 1:
            raise InputError(f"{self.path}: a region of {width}x{height} px is empty; give a width and height from 1")
        if not (math.isfinite(x) and math.isfinite(y)):
            raise InputError(f"{self.path}: a region cannot begin at {x}, {y}; give pixels of level 0")
        index, ratio = self._level_at(mpp)
        level = self._stored[index]
        left, top = (x + self._shift[0]) / level.downsample, (y + self._shift[1]) / level.downsample
        pixels = np.full((height, width, 3), 255, np.uint8)
        step = max(1, int(_BLOCK / ratio))
        for row in range(0, height, step):
            for column in range(0, width, step):
                block = pixels[row : row + step, column : column + step]
                bottom, right = row + block.shape[0], column + block.shape[1]
                box = (left + column * ratio, top + row * ratio, left + right * ratio, top + bottom * ratio)
                if box[0] < level.width + ratio and box[1] < level.height + ratio and min(box[2:]) > -ratio:
                    block[...] = self._read_block(index, box, block.shape[1::-1], ratio)
        return pixels

    def _read_block(
        self, index: int, box: tuple[float, float, float, float], shape: tuple[int, ...], ratio: float
    ) -> NDArray[np.uint8]:
        """Read a box in pixels of a level and resample it to `shape` (width, height)."""
        if ratio == 1:
            return self._read_level(index, math.floor(box[0] + 0.5), math.floor(box[1] + 0.5), shape[0], shape[1])
        margin = math.ceil(ratio) + 1  # how far the filter looks beyond the box
        x0, y0 = math.floor(box[0]) - margin, math.floor(box[1]) - margin
        x1, y1 = math.ceil(box[2]) + margin, math.ceil(box[3]) + margin
        image = Image.fromarray(self._read_level(index, x0, y0, x1 - x0, y1 - y0))
        inner = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
        return np.asarray(image.resize((shape[0], shape[1]), Image.Resampling.HAMMING, box=inner))

    def _read_level(self, index: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Pixels of a level, white outside of it."""
        level = self._stored[index]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, level.width), min(y + height, level.height)
        pixels = np.full((height, width, 3), 255, np.uint8)
        if x0 < x1 and y0 < y1:
            source = self._source()
            try:
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = source.read(self._indices[index], x0, y0, x1 - x0, y1 - y0)
            except InputError:
                # OpenSlide refuses everything after its first error; the next region gets a fresh handle.
                self._sources.pop(os.getpid(), None)
                raise
        return pixels

    def thumbnail(self, *, mpp: float | None = None, max_side: int = 1000) -> NDArray[np.uint8]:
        """Read the whole slide, small.

        Args:
            mpp: its scale in micrometres per pixel; or
            max_side: its longer side in pixels; level 0 itself where that is no longer.

        Returns:
            (H, W, 3) uint8.

        Raises:
            InputError: as `read`.
        """
        if mpp is None:
            mpp = self.mpp * max(1.0, max(self.size) / max_side)
            while max(self.size_at(mpp)) > max(1, max_side):  # a level within 1 % may be that much larger
                mpp *= 1 + 2 * NEAR
        return self.read(0, 0, *self.size_at(mpp), mpp)


def open_slide(path: Path, *, mpp: float | None = None, option: str = "--mpp", origin: Origin = "level0") -> Slide:
    """Open a slide: a format of OpenSlide, any 8-bit RGB TIFF, PNG, JPEG or BMP.

    Its scale is that of the file: of the scanner's properties, of OME, or else of ImageJ's unit or resolution tags,
    unless these are coarser than 20 µm/px, as the 72 dpi that programs write by default are.

    Args:
        path: the file; of a DICOM series any one.
        mpp: micrometres per pixel of level 0, where the file does not say it; where it does, `notes` say so.
        option: what gives it, for messages: the command's option, or a column of a table.
        origin: `bounds` shows only what was scanned, as QuPath does, where the file says it (MRXS, SCN): its upper left
            corner is the pixel 0, 0. `level0` shows the whole level, as OpenSlide does.

    Raises:
        InputError: the file is absent, truncated or no slide, its scale is unknown, or its pixels are not
            square (x and y differ by more than 1 %) and no mpp is given.
    """
    return Slide(Path(path).absolute(), mpp, option, origin)


def stored_mpp(path: Path) -> float | None:
    """Micrometres per pixel that a picture or slide says of itself; None where `open_slide` would ask for them."""
    try:
        with open_slide(path) as slide:
            return slide.mpp
    except InputError:
        return None


def describe(slide: Slide) -> dict[str, Any]:
    """What there is to know of a slide without reading pixels; fit for JSON.

    Returns:
        path, format, width, height (px of level 0), width_mm, height_mm, mpp, mpp_from (`file` or `user`),
        levels (each width, height, downsample, mpp) and properties (of the file, by name).
    """
    return {
        "path": str(slide.path),
        "format": slide.format,
        "width": slide.width,
        "height": slide.height,
        "width_mm": round(slide.width * slide.mpp / 1000, 3),
        "height_mm": round(slide.height * slide.mpp / 1000, 3),
        "mpp": slide.mpp,
        "mpp_from": "user" if slide.user_mpp else "file",
        "levels": [level._asdict() for level in slide.levels],
        "properties": dict(sorted(slide.properties.items())),
    }


def _scale(path: Path, source: Source, mpp: float | None, option: str) -> tuple[float, bool, tuple[str, ...]]:
    """Micrometres per pixel, whether they are the user's, and what contradicts them."""
    if mpp is not None and not 0 < mpp < math.inf:
        raise InputError(f"{option} {mpp:g}: give a positive number of micrometres per pixel")
    stored, problem = source.mpp, ""
    if stored is None or not all(0 < value < math.inf for value in stored):
        problem = f"does not say how large its pixels are; give {option}, the micrometres per pixel"
    elif max(stored) > COARSEST_MPP:
        problem = f"says {max(stored):.4g} µm/px, a resolution of screens or paper; give the right {option}"
    elif max(stored) > min(stored) * (1 + NEAR):
        x, y = stored
        problem = (
            f"its pixels are not square ({x:.4g} and {y:.4g} µm); resample the slide, or give {option} if the file is "
            "wrong"
        )
    if stored is None or problem:
        if mpp is None:
            raise InputError(f"{path}: {problem}")
        return float(mpp), True, ()
    own = (stored[0] + stored[1]) / 2
    others = [source.properties[MPP_NOTE]] if MPP_NOTE in source.properties else []
    others += [f"{option} {mpp:.4g}"] if mpp is not None and abs(mpp / own - 1) > NEAR else []
    note = (
        f"{path.name}: says {own:.4g} µm/px, but {{}}; its own {own:.4g} are used, correct the file if they are wrong"
    )
    return own, False, tuple(note.format(other) for other in others)


def _bounds(properties: Mapping[str, str], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """x, y, width and height of what was scanned; the whole level where the file does not say it."""
    try:
        names = ("x", "y", "width", "height")
        x, y, width, height = (int(properties[f"openslide.bounds-{name}"]) for name in names)
    except (KeyError, ValueError):
        return 0, 0, *size
    inside = x >= 0 and y >= 0 and 0 < width <= size[0] - x and 0 < height <= size[1] - y
    return (x, y, width, height) if inside else (0, 0, *size)


def _downsample(base: tuple[int, int], size: tuple[int, int]) -> float | None:
    """Scale of a level: the whole number that its rounded size allows, or else the mean; None: another picture."""
    x, y = (long / max(short, 1) for long, short in zip(base, size, strict=True))
    whole = max(1, round((x + y) / 2))
    if all(abs(long / whole - short) < 1 for long, short in zip(base, size, strict=True)):
        return float(whole)
    # Sizes are whole pixels, so a tiny level may miss the aspect ratio by as much.
    return (x + y) / 2 if abs(x / y - 1) <= NEAR + 1 / min(size) else None
