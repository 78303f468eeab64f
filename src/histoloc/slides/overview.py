"""One picture of a slide and its map, with what is needed to read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from histoloc.pictures import Picture, heat_scale, overlay
from histoloc.slides.reader import Slide
from histoloc.slides.regions import Outline

Font = ImageFont.FreeTypeFont

MARGIN = 18
_INK, _PALE = (30, 30, 30), (190, 190, 190)
_NARROWEST = 560  # of the picture in pixels, so that legend and headings have room
_SMALLEST = 17  # letters in pixels; they grow with the picture, which is looked at as a whole


def overview(
    slide: Slide,
    roi: NDArray[np.uint8],
    scale: float,
    outlines: Sequence[Outline],
    *,
    title: Sequence[str],
    threshold: float,
    max_side: int = 1600,
) -> Picture:
    """The slide as it is beside the slide under its map, with outlines, colour bar and a scale bar in mm.

    Slides that are wider than high stand one above the other.

    Args:
        slide: whose thumbnail is shown.
        roi: the map, as it is or reduced (`pyramid.read_level`), (h, w) uint8 for 0 to 1; may reach beyond the slide.
        scale: pixels of the slide's level 0 per pixel of `roi`.
        outlines: what to draw; all of them, however small.
        title: lines of text above, the first larger; what is too long ends in an ellipsis.
        threshold: in [0, 1], marked at the colour bar.
        max_side: the longer side of each of the two thumbnails in pixels, at most; where the slide stores a level of
            at least half that size, the thumbnail is that level, since a larger one would need all of the next.

    Returns:
        (H, W, 3) uint8; larger than two thumbnails by margins and text.

    Raises:
        InputError: the slide cannot be read.
    """
    bare = slide.thumbnail(max_side=_cheap_side(slide, max_side))
    height, width = bare.shape[:2]
    heat = overlay(bare, _resized(roi, scale, slide, (height, width)), np.zeros((height, width), bool))
    marked = _drawn(heat, outlines, (width / slide.width, height / slide.height))
    return _page(bare, marked, title, slide.width * slide.mpp / 1000 / width, threshold)


def _cheap_side(slide: Slide, max_side: int) -> int:
    stored = [side for level in slide.levels if max_side / 2 <= (side := max(level.width, level.height)) <= max_side]
    return max(stored, default=max_side)


def _page(bare: Picture, marked: Picture, title: Sequence[str], mm_per_pixel: float, threshold: float) -> Picture:
    """Both pictures with title, scale bar and colour bar."""
    height, width = bare.shape[:2]
    above = width > height
    across, down = (width, 2 * height + MARGIN) if above else (2 * width + MARGIN, height)
    full = max(across, _NARROWEST)
    size = max(_SMALLEST, full // 100)
    line = round(1.65 * size)
    left, top = MARGIN + (full - across) // 2, MARGIN + line * len(title)
    below = top + down + MARGIN
    canvas = Image.new("RGB", (full + 2 * MARGIN, below + 2 * line + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(title):
        font = _font(size, bold=number == 0)
        draw.text((MARGIN, MARGIN + number * line), _shortened(text, font, full), _INK, font, anchor="lt")
    second = (left, top + height + MARGIN) if above else (left + width + MARGIN, top)
    for place, picture in (((left, top), bare), (second, marked)):
        canvas.paste(Image.fromarray(picture), place)
        draw.rectangle((place[0] - 1, place[1] - 1, place[0] + width, place[1] + height), outline=_PALE)
    _scale_bar(draw, MARGIN, below, width, mm_per_pixel, _font(size))
    _colour_bar(canvas, draw, MARGIN + full, below, threshold, _font(size))
    return np.asarray(canvas)


def _resized(roi: NDArray[np.uint8], scale: float, slide: Slide, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The part of the map that lies on the slide, at the thumbnail's size, in [0, 1]."""
    box = (0, 0, min(slide.width / scale, roi.shape[1]), min(slide.height / scale, roi.shape[0]))
    image = Image.fromarray(roi).resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image, np.float32) / np.float32(255)


def _drawn(picture: Picture, outlines: Sequence[Outline], ratio: tuple[float, float]) -> Picture:
    """Outlines as a white line within a black one, which shows on any tissue."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    polygons = np.array([outline.geometry for outline in outlines], object)
    # Pillow counts from the centre of the first pixel, polygons from its corner.
    rings = shapely.transform(shapely.get_rings(polygons), lambda points: points * ratio - 0.5)
    # Vertices closer than pixels cost time only.
    lines = [shapely.get_coordinates(ring).ravel().tolist() for ring in shapely.simplify(rings, 0.5)]
    for width, colour in ((4, (0, 0, 0)), (2, (255, 255, 255))):
        for line in lines:
            draw.line(line, colour, width, joint="curve")
    return np.asarray(image)


def _scale_bar(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, mm_per_pixel: float, font: Font) -> None:
    """A bar of 1, 2 or 5 times a power of ten, about a fifth of the thumbnail wide."""
    most = max(width / 5, 60) * mm_per_pixel
    power = 10.0 ** math.floor(math.log10(most))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= most)
    end, thick = x + round(length / mm_per_pixel), font.size // 3
    middle = y + font.size // 2
    draw.rectangle((x, middle - thick // 2, end - 1, middle + thick // 2), fill=_INK)
    draw.text((end + font.size // 2, middle), f"{length:g} mm", _INK, font, anchor="lm")


def _colour_bar(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, right: int, y: int, threshold: float, font: Font
) -> None:
    """The colours from 0 to 1 left of `right`; the threshold is a mark through the bar with its value below."""
    tall, long = int(font.size), int(14 * font.size)
    x, middle, gap = right - long - tall, y + tall // 2, tall // 2
    canvas.paste(Image.fromarray(heat_scale(long, tall)), (x, y))
    draw.rectangle((x - 1, y - 1, x + long, y + tall), outline=_PALE)
    draw.text((x - gap, middle), "ROI 0", _INK, font, anchor="rm")
    draw.text((x + long + gap, middle), "1", _INK, font, anchor="lm")
    mark = x + round(threshold * (long - 1))
    draw.line((mark, y - 4, mark, y + tall + 4), "white", 5)
    draw.line((mark, y - 4, mark, y + tall + 4), _INK, 3)
    text = f"outlined from {threshold:.2g}"
    half = draw.textlength(text, font) / 2
    draw.text((min(max(mark, x + half), x + long - half), y + tall + gap), text, _INK, font, anchor="mt")


def _shortened(text: str, font: Font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache
def _font(size: int, *, bold: bool = False) -> Font:
    # It comes with matplotlib, and has more scripts than what comes with Pillow.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
