import numpy as np
import pytest
import shapely

from factory import box, make_slide
from histoloc.pictures import HEAT, HEAT_OPACITY
from histoloc.slides.overview import _bar_length, overview, under_map
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


def picture(slide, roi=None, outlines=(), threshold=0.5, cell=CELL):
    values = np.zeros((128, 94), np.uint8) if roi is None else roi
    return overview(slide, values, cell, outlines, title=["s", "metastatic 0.98"], threshold=threshold, max_side=800)


def box_of(a, b):
    """Left, top, right, bottom of where two pictures differ."""
    rows, columns = np.nonzero((a != b).any(axis=2))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_the_map_lies_where_it_belongs(slide):
    thumbnail = slide.thumbnail(max_side=800)
    marked = under_map(slide, thumbnail, roi_map(), CELL)
    ratio = thumbnail.shape[0] / SIZE[1]
    left, top, right, bottom = (round(value * ratio) for value in (1000, 1500, 1800, 2700))
    inside = marked[top + 10 : bottom - 10, left + 10 : right - 10].astype(float)
    under = thumbnail[top + 10 : bottom - 10, left + 10 : right - 10]
    expected = (1 - HEAT_OPACITY) * under + HEAT_OPACITY * 255 * np.array(HEAT(1.0)[:3])
    assert np.abs(inside - expected).max() <= 1
    far = np.ones(thumbnail.shape[:2], bool)
    far[top - 10 : bottom + 10, left - 10 : right + 10] = False
    assert (marked[far] == thumbnail[far]).all()
    half = under_map(slide, thumbnail, roi_map(2 * CELL), 2 * CELL)
    assert box_of(half, thumbnail) == pytest.approx(box_of(marked, thumbnail), abs=8)


def test_outlines_lie_on_the_map_and_not_on_the_bare_slide(slide):
    empty = picture(slide)
    panel = box_of(empty, picture(slide, np.full((128, 94), 255, np.uint8)))
    scale = (panel[2] - panel[0]) / SIZE[0]
    assert panel[0] > empty.shape[1] / 2
    outlined = box_of(empty, picture(slide, outlines=[Outline(shapely.box(1000, 1500, 1800, 2700), 0.24, 1.0)]))
    expected = np.tile(panel[:2], 2) + scale * np.array([1000, 1500, 1800, 2700])
    assert outlined == pytest.approx(expected, abs=5)


def test_a_stored_level_of_that_size_is_taken_as_it_is(slide, monkeypatch):
    sides = []
    real = type(slide).thumbnail
    monkeypatch.setattr(
        type(slide), "thumbnail", lambda self, max_side: sides.append(max_side) or real(self, max_side=max_side)
    )
    overview(slide, roi_map(), CELL, [], title=["s"], threshold=0.5, max_side=round(1.5 * slide.levels[-1].height))
    assert sides == [slide.levels[-1].height]


@pytest.mark.parametrize(("width", "length"), [(1.5, 0.2), (5, 1), (9.9, 1), (10, 2), (26, 5), (0.03, 0.005)])
def test_the_scale_bar_is_1_2_or_5_times_a_power_of_ten(width, length):
    assert _bar_length(width) == pytest.approx(length)


def test_the_threshold_is_marked_on_the_colour_bar(slide):
    low, middle, high = (picture(slide, threshold=value) for value in (0.25, 0.5, 0.75))

    def distance(one, other):
        columns = next(np.flatnonzero(row) for row in (one != other).any(axis=2) if row.any())
        return columns.max() - columns.min()

    assert distance(low, high) - distance(low, middle) == pytest.approx(distance(middle, high), abs=10)
    assert distance(low, high) > low.shape[1] / 10


def test_wide_slides_stand_above_each_other(tmp_path):
    make_slide(tmp_path / "wide.tif", (4000, 1000), MPP, [box("tissue", 500, 300, 2000, 400)])
    make_slide(tmp_path / "tiny.tif", (64, 64), MPP, [], downsamples=(1,))
    with open_slide(tmp_path / "wide.tif") as wide, open_slide(tmp_path / "tiny.tif") as tiny:
        one, two = (np.full((32, 125), value, np.uint8) for value in (0, 255))
        panel = box_of(picture(wide, one), picture(wide, two))
        height, width = picture(wide, one).shape[:2]
        assert panel[2] - panel[0] > 0.9 * width
        assert panel[1] > height / 3
        assert min(picture(tiny, np.zeros((2, 2), np.uint8)).shape[:2]) > 400, "there is room for the legend"


def test_the_real_slide_with_its_outlines(shared_data):
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as real:
        cells = (-(-real.height // 32), -(-real.width // 32))
        values = np.zeros(cells, np.uint8)
        values[20:60, 25:45] = 180
        outlines = find_outlines([values], 0.5, 32.0, 32 * real.mpp, size=real.size)
        thumbnail = real.thumbnail(max_side=500)
        changed = np.argwhere((under_map(real, thumbnail, values, 32.0) != thumbnail).any(axis=2))
        assert overview(real, values, 32.0, outlines, title=["CMU-1"], threshold=0.5, max_side=500).ndim == 3
    ratio = 500 / real.height
    assert changed.min(axis=0) == pytest.approx(np.array([20, 25]) * 32 * ratio, abs=32 * ratio)
    assert changed.max(axis=0) == pytest.approx(np.array([60, 45]) * 32 * ratio, abs=32 * ratio)
