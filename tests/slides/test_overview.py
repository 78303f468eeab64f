import numpy as np
import pytest
import shapely

from factory import box, make_slide
from histoloc.pictures import HEAT, HEAT_OPACITY
from histoloc.slides.overview import MARGIN, overview
from histoloc.slides.reader import open_slide
from histoloc.slides.regions import Outline, find_outlines

MPP = 0.5
SIZE = (3000, 4096)
SQUARE = (1000, 1500, 800, 1200)  # x, y, width, height of what is ROI, in pixels of level 0
CELL = 32


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "s.tif"
    make_slide(path, SIZE, MPP, [box("gap", 0, 0, *SIZE), box("metastasis", *SQUARE)])
    with open_slide(path) as opened:
        yield opened


def roi_map(cell=CELL):
    """A map of cells that hold the share of the square in them, so that it lies right to a fraction of a cell."""
    x, y, width, height = SQUARE
    edges = [np.arange(-(-side // cell) + 1) * cell for side in SIZE]
    across, down = (
        np.diff(np.clip(e, start, start + length)) / cell
        for e, (start, length) in zip(edges, ((x, width), (y, height)), strict=True)
    )
    return np.rint(255 * np.outer(down, across)).astype(np.uint8)


def panels(picture, thumbnail, lines):
    """The bare picture and the one with heat, beside or below each other."""
    height, width = thumbnail.shape[:2]
    size = max(17, max(560, 2 * width + MARGIN) // 100)
    top = MARGIN + lines * round(1.65 * size)
    left = (picture.shape[1] - 2 * width - MARGIN) // 2
    second = left + width + MARGIN
    return picture[top : top + height, left : left + width], picture[top : top + height, second : second + width]


def test_the_slide_lies_beside_the_slide_under_its_map(slide):
    outlines = [Outline(shapely.box(1000, 1500, 1800, 2700), 0.24, 1.0)]
    picture = overview(slide, roi_map(), CELL, outlines, title=["s", "metastatic 0.98"], threshold=0.5, max_side=800)
    thumbnail = slide.thumbnail(max_side=800)
    bare, marked = panels(picture, thumbnail, 2)
    assert (bare == thumbnail).all()
    ratio = thumbnail.shape[0] / SIZE[1]
    left, top, right, bottom = (round(value * ratio) for value in (1000, 1500, 1800, 2700))
    inside = marked[top + 10 : bottom - 10, left + 10 : right - 10].astype(float)
    under = thumbnail[top + 10 : bottom - 10, left + 10 : right - 10]
    expected = (1 - HEAT_OPACITY) * under + HEAT_OPACITY * 255 * np.array(HEAT(1.0)[:3])
    assert np.abs(inside - expected).max() <= 1
    far = np.ones(thumbnail.shape[:2], bool)
    far[top - 10 : bottom + 10, left - 10 : right + 10] = False
    assert (marked[far] == thumbnail[far]).all()


def test_outlines_lie_where_they_belong_to_the_pixel(slide):
    outlines = [Outline(shapely.box(1000, 1500, 1800, 2700), 0.24, 1.0)]
    empty = np.zeros((128, 94), np.uint8)
    picture = overview(slide, empty, CELL, outlines, title=["s"], threshold=0.5, max_side=800)
    thumbnail = slide.thumbnail(max_side=800)
    _, marked = panels(picture, thumbnail, 1)
    changed = (marked != thumbnail).any(axis=2)
    rows, columns = np.nonzero(changed)
    ratio = thumbnail.shape[0] / SIZE[1]
    for found, edge in ((rows.min() + 2, 1500), (rows.max() - 1, 2700), (columns.min() + 2, 1000)):
        assert found == pytest.approx(edge * ratio, abs=1.5)
    assert (marked[round(1500 * ratio) - 1 : round(1500 * ratio) + 1, 250] == 255).all(axis=1).any()


def test_a_reduced_map_lies_where_the_map_lies(slide):
    fine, coarse = (
        overview(slide, roi_map(cell), cell, [], title=["s"], threshold=0.5, max_side=800) for cell in (CELL, 2 * CELL)
    )
    weights = []
    for picture in (fine, coarse):
        bare, marked = panels(picture, slide.thumbnail(max_side=800), 1)
        changed = (marked != bare).any(axis=2)
        weights.append(np.argwhere(changed).mean(axis=0))
    assert weights[0] == pytest.approx(weights[1], abs=1.5)
    centre = np.array([1500 + 600, 1000 + 400]) * 800 / SIZE[1]
    assert weights[0] == pytest.approx(centre, abs=1.5)


def test_a_stored_level_of_that_size_is_taken_as_it_is(slide):
    level = slide.levels[-1]
    picture = overview(slide, roi_map(), CELL, [], title=["s"], threshold=0.5, max_side=round(1.5 * level.height))
    bare, _ = panels(picture, slide.thumbnail(max_side=level.height), 1)
    np.testing.assert_array_equal(bare, slide.read(0, 0, level.width, level.height, level.mpp))


def test_the_scale_bar_has_its_length(slide):
    picture = overview(slide, roi_map(), CELL, [], title=[], threshold=0.5, max_side=800)
    height, width = slide.thumbnail(max_side=800).shape[:2]
    footer = picture[2 * MARGIN + height :]
    row = footer[17 // 2]
    length = int(np.argmin((row[MARGIN:] == (30, 30, 30)).all(axis=1)))
    assert length == round(0.2 / (SIZE[0] * MPP / 1000 / width))  # of 1.5 mm, a fifth is 0.3


@pytest.mark.parametrize("threshold", [0.0, 0.37, 1.0])
def test_the_threshold_is_marked_on_the_colour_bar(slide, threshold):
    pictures = [
        overview(slide, roi_map(), CELL, [], title=[], threshold=value, max_side=800) for value in (threshold, 0.8)
    ]
    size = 17
    long, right = 14 * size, pictures[0].shape[1] - MARGIN
    x = right - long - size
    top = 2 * MARGIN + slide.thumbnail(max_side=800).shape[0]
    dark = (pictures[0][top - 3, x : x + long] == 30).all(axis=1)
    assert np.flatnonzero(dark).mean() == pytest.approx(threshold * (long - 1), abs=1.1)
    assert (pictures[0] != pictures[1]).any()


def test_wide_slides_stand_above_each_other_and_long_titles_are_cut(tmp_path):
    make_slide(tmp_path / "wide.tif", (4000, 1000), MPP, [box("tissue", 500, 300, 2000, 400)])
    with open_slide(tmp_path / "wide.tif") as wide:
        values = np.zeros((32, 125), np.uint8)
        picture = overview(wide, values, CELL, [], title=["W" * 500], threshold=0.5, max_side=600)
        thumbnail = wide.thumbnail(max_side=600)
    assert picture.shape[1] == 600 + 2 * MARGIN
    top = MARGIN + round(1.65 * 17)
    for start in (top, top + 150 + MARGIN):
        assert (picture[start : start + 150, MARGIN : MARGIN + 600] == thumbnail).all()
    assert (picture[:, -MARGIN + 3 :] == 255).all()


def test_a_tiny_slide_has_room_for_its_legend(tmp_path):
    make_slide(tmp_path / "tiny.tif", (64, 64), MPP, [], downsamples=(1,))
    with open_slide(tmp_path / "tiny.tif") as tiny:
        picture = overview(tiny, np.zeros((2, 2), np.uint8), CELL, [], title=["t"], threshold=0.5)
    assert picture.shape[1] == 560 + 2 * MARGIN
    assert picture.dtype == np.uint8


def test_the_real_slide_with_its_outlines(shared_data):
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as real:
        cells = (-(-real.height // 32), -(-real.width // 32))
        values = np.zeros(cells, np.uint8)
        values[20:60, 25:45] = 180
        outlines = find_outlines([values], 0.5, 32.0, 32 * real.mpp, size=real.size)
        picture = overview(real, values, 32.0, outlines, title=["CMU-1"], threshold=0.5, max_side=500)
        bare, marked = panels(picture, real.thumbnail(max_side=500), 1)
    changed = np.argwhere((bare != marked).any(axis=2))
    ratio = 500 / real.height
    assert changed.min(axis=0) == pytest.approx(np.array([20, 25]) * 32 * ratio, abs=32 * ratio)
    assert changed.max(axis=0) == pytest.approx(np.array([60, 45]) * 32 * ratio, abs=32 * ratio)
