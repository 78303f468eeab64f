"""One picture of a slide and its map, with what is needed to read it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray
from PIL import Image

from histoloc.pictures import Picture, heat_scale, overlay
from histoloc.slides.reader import Slide
from histoloc.slides.regions import Outline

_DPI = 160  # letters are large, because the picture is looked at as a whole


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
        roi: the map, as it is or reduced, (h, w) uint8 for 0 to 1; may reach beyond the slide.
        scale: pixels of the slide's level 0 per pixel of `roi`.
        outlines: what to draw; all of them, however small.
        title: lines of text above.
        threshold: in [0, 1], marked at the colour bar.
        max_side: the longer side of each of the two thumbnails in pixels, at most; where the slide stores a level of
            at least half that size, the thumbnail is that level, since a larger one would need all of the next.

    Returns:
        (H, W, 3) uint8; larger than two thumbnails by margins and text.

    Raises:
        InputError: the slide cannot be read.
    """
    bare = slide.thumbnail(max_side=_cheap_side(slide, max_side))
    heat = under_map(slide, bare, roi, scale)
    figure, left, right = _page(bare, heat, (slide.width, slide.height))
    rings = shapely.get_rings([outline.geometry for outline in outlines])
    # Vertices closer than pixels cost time only.
    lines = [shapely.get_coordinates(ring) for ring in shapely.simplify(rings, 0.5 * slide.width / bare.shape[1])]
    border = [withStroke(linewidth=3, foreground="black")]
    right.add_collection(LineCollection(lines, colors="white", linewidths=1.5, path_effects=border), autolim=False)
    mm = _bar_length(slide.width * slide.mpp / 1000)
    left.add_artist(AnchoredSizeBar(left.transData, mm * 1000 / slide.mpp, f"{mm:g} mm", "lower left"))
    colours = ScalarMappable(cmap=ListedColormap(heat_scale(256, 1)[0] / 255))
    label = f"ROI, outlined from {threshold:.2g}"
    bar = figure.colorbar(colours, ax=[left, right], label=label, location="bottom", shrink=0.4, aspect=30)
    bar.ax.axvline(threshold, color="black", linewidth=3)
    figure.suptitle("\n".join(title))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _page(bare: Picture, heat: Picture, size: tuple[int, int]) -> tuple[Figure, Axes, Axes]:
    """A figure of two pictures of the slide, in the coordinates of its level 0."""
    height, width = bare.shape[:2]
    across, down = (1, 2) if width > height else (2, 1)
    inches = max(across * width / _DPI, 4) + 0.2, max(down * height / _DPI, 2) + 1.5  # the rest is for text
    figure = Figure(inches, dpi=_DPI, layout="constrained")
    left, right = figure.subplots(down, across)
    for axes, picture in ((left, bare), (right, heat)):
        axes.imshow(picture, extent=(0, size[0], size[1], 0))
        axes.set_axis_off()
    return figure, left, right


def under_map(slide: Slide, thumbnail: Picture, roi: NDArray[np.uint8], scale: float) -> Picture:
    """A thumbnail of the whole slide under the part of a map that lies on it; see `overview`."""
    box = (0, 0, min(slide.width / scale, roi.shape[1]), min(slide.height / scale, roi.shape[0]))
    height, width = thumbnail.shape[:2]
    fitted = Image.fromarray(roi).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return overlay(thumbnail, np.asarray(fitted, np.float32) / np.float32(255), np.zeros((height, width), bool))


def _cheap_side(slide: Slide, max_side: int) -> int:
    stored = [side for level in slide.levels if max_side / 2 <= (side := max(level.width, level.height)) <= max_side]
    return max(stored, default=max_side)


def _bar_length(width: float) -> float:
    """1, 2 or 5 times a power of ten, about a fifth of a width."""
    power = 10.0 ** math.floor(math.log10(width / 5))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= width / 5)
