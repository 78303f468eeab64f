import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from factory import box, make_slide
from histoloc.errors import InputError
from histoloc.slides.grid import TileGrid, axis_starts, tile_grid
from histoloc.slides.reader import Slide, open_slide
from histoloc.slides.tissue import tissue


@st.composite
def axes(draw) -> tuple[int, int, int, int]:
    """length, tile, step, cell"""
    cell = draw(st.integers(1, 9))
    n = draw(st.integers(1, 12))
    return draw(st.integers(1, 400)), n * cell, draw(st.integers(1, n)) * cell, cell


@given(axes())
def test_tiles_of_an_axis_cover_it_and_reach_no_farther_than_they_must(axis):
    length, tile, step, cell = axis
    starts = axis_starts(length, tile, step, cell)
    assert starts[0] == 0
    assert (starts % cell == 0).all()
    assert (np.diff(starts)[:-1] == step).all()
    assert ((np.diff(starts) > 0) & (np.diff(starts) <= step)).all()
    covered = np.zeros(starts[-1] + tile, bool)
    for start in starts:
        covered[start : start + tile] = True
    assert covered.all()
    assert len(covered) >= length
    assert starts[-1] == 0 or starts[-1] - cell + tile < length


@pytest.mark.parametrize(
    ("length", "expected"), [(1, [0]), (512, [0]), (513, [0, 8]), (896, [0, 384]), (1000, [0, 384, 488])]
)
def test_tiles_of_an_axis_by_hand(length, expected):
    assert axis_starts(length, 512, 384, 8).tolist() == expected


def plain(tmp_path, width: int, height: int) -> Slide:
    path = tmp_path / f"{width}x{height}.png"
    Image.new("RGB", (width, height), "white").save(path)
    return open_slide(path, mpp=0.5)


def covered_by(grid: TileGrid, shape: tuple[int, int]) -> np.ndarray:
    """Pixels of a mask whose centres lie in a tile, one by one; the slide is read at its level 0."""
    sizes = (grid.height, grid.width)
    ys, xs = ((np.arange(count) + 0.5) * size / count for count, size in zip(shape, sizes, strict=True))
    covered = np.zeros(shape, bool)
    for x, y in grid.positions:
        covered |= ((ys >= y) & (ys < y + grid.tile))[:, None] & ((xs >= x) & (xs < x + grid.tile))
    return covered


def test_without_a_mask_all_tiles_are_kept_row_by_row(tmp_path):
    with plain(tmp_path, 150, 100) as slide:
        grid = tile_grid(slide, 0.5, tile=64, overlap=0.25, cell=8)
    assert (grid.tile, grid.step, grid.cell, grid.side) == (64, 48, 8, 8)
    assert (grid.width, grid.height, grid.columns, grid.rows) == (150, 100, 19, 13)
    assert (grid.mpp, grid.downsample) == (0.5, 1.0)
    xs, ys = [0, 48, 88], [0, 40]
    assert grid.positions.tolist() == [[x, y] for y in ys for x in xs]
    assert grid.positions.dtype == np.int64
    assert grid.tissue.tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("overlap", "cell", "step"), [(0, 8, 64), (0.25, 16, 48), (0.3, 16, 48), (0.9, 8, 8), (0.9, 32, 32), (0.5, 1, 32)]
)
def test_the_step_is_a_whole_number_of_cells(tmp_path, overlap, cell, step):
    with plain(tmp_path, 200, 70) as slide:
        assert tile_grid(slide, 0.5, tile=64, overlap=overlap, cell=cell).step == step


def test_a_tile_is_kept_by_its_share_or_for_a_fragment_that_no_other_holds(tmp_path):
    mask = np.zeros((64, 96), bool)  # 1 px = 4 working px
    mask[0:16, 0:16] = True  # the whole first tile
    mask[40, 40] = True  # a speck where four tiles meet
    mask[63, 95] = True  # the last corner of the slide
    with plain(tmp_path, 384, 256) as slide:
        grid = tile_grid(slide, 0.5, tile=64, overlap=0.25, cell=8, mask=mask, mask_mpp=2.0)
    assert grid.positions.tolist() == [[0, 0], [48, 0], [0, 48], [48, 48], [144, 144], [320, 192]]
    assert grid.tissue == pytest.approx([1, 0.25, 0.25, 0.0625, 1 / 256, 1 / 256])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), width=st.integers(32, 300), height=st.integers(32, 300),
    overlap=st.sampled_from([0, 0.25, 0.5]), density=st.sampled_from([0.001, 0.01, 0.3]),
)  # fmt: skip
def test_every_pixel_of_tissue_lies_in_a_tile(tmp_path_factory, seed, width, height, overlap, density):
    shape = (max(1, round(height / 4)), max(1, round(width / 4)))
    mask = np.random.default_rng(seed).random(shape) < density
    with plain(tmp_path_factory.mktemp("s"), width, height) as slide:
        grid = tile_grid(slide, 0.5, tile=32, overlap=overlap, cell=4, mask=mask, mask_mpp=2.0)
        every = tile_grid(slide, 0.5, tile=32, overlap=overlap, cell=4)
    assert not (mask & ~covered_by(grid, shape)).any()
    keys = [tuple(p) for p in every.positions.tolist()]
    items = [keys.index(tuple(p)) for p in grid.positions.tolist()]
    assert items == sorted(items)
    assert (len(items) == 0) == (not mask.any())


def test_no_tissue_gives_no_tiles(tmp_path):
    with plain(tmp_path, 200, 100) as slide:
        grid = tile_grid(slide, 0.5, tile=32, overlap=0.25, cell=8, mask=np.zeros((25, 50), bool), mask_mpp=2.0)
    assert grid.positions.shape == (0, 2)
    assert grid.tissue.shape == (0,)
    assert (grid.columns, grid.rows) == (25, 13)


def test_working_pixels_are_those_that_are_read(tmp_path):
    path = tmp_path / "slide.tif"
    make_slide(path, (4100, 2500), 0.252, [box("tissue", 1000, 800, 1500, 900)], downsamples=(1, 4))
    with open_slide(path) as slide:
        # 0.25 is read from level 0 as it is, 1 from the level of 1.008; 0.5 is resampled.
        for options, mpp, downsample in [(0.25, 0.252, 1), (1.0, 1.008, 4), (0.5, 0.5, 0.5 / 0.252)]:
            grid = tile_grid(slide, options, tile=256, overlap=0.25, cell=8)
            assert grid.mpp == pytest.approx(mpp, rel=1e-6)
            assert grid.downsample == pytest.approx(downsample, rel=1e-6)
            assert (grid.width, grid.height) == slide.size_at(options) == slide.size_at(grid.mpp)
            # The far corner of the map is that of the slide.
            assert grid.width * grid.downsample == pytest.approx(slide.width, abs=downsample)
        grid = tile_grid(slide, 0.5, tile=128, overlap=0, cell=8, mask=tissue(slide), mask_mpp=8.0)
    x, y = grid.positions[:, 0] * grid.downsample, grid.positions[:, 1] * grid.downsample
    side = 128 * grid.downsample
    assert x.min() <= 1000 < x.min() + side
    assert y.min() <= 800 < y.min() + side
    assert x.max() <= 2500 < x.max() + side + 32
    area = grid.tissue.sum() * side**2
    assert area == pytest.approx(1500 * 900, rel=0.05)


def test_a_scale_that_the_slide_does_not_have_is_named(tmp_path):
    with plain(tmp_path, 200, 100) as slide, pytest.raises(InputError, match="cannot be enlarged"):
        tile_grid(slide, 0.1, 32, 0.25, 8)


def test_a_mask_of_another_scale_is_refused(tmp_path):
    with plain(tmp_path, 200, 100) as slide, pytest.raises(ValueError, match="is not that of"):
        tile_grid(slide, 0.5, 32, 0.25, 8, np.ones((100, 200), bool), 2.0)
