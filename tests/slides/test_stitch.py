import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal.windows import gaussian

from histoloc.slides.grid import TileGrid, axis_starts
from histoloc.slides.stitch import as_bytes, gaussian_window, stitch, tissue_rows, write_map


def grid_of(width: int, height: int, tile: int, step: int, cell: int, kept: Sequence[bool] | None = None) -> TileGrid:
    xs, ys = axis_starts(width, tile, step, cell), axis_starts(height, tile, step, cell)
    positions = np.array([[x, y] for y in ys for x in xs], np.int64).reshape(-1, 2)
    if kept is not None:
        positions = positions[np.resize(np.asarray(kept, bool), len(positions))]
    return TileGrid(tile, step, cell, 0.5, 1.0, width, height, positions, np.ones(len(positions)))


@st.composite
def grids(draw) -> TileGrid:
    """Slides that are multiples of nothing, tiles with any overlap, any of them left out."""
    cell = draw(st.integers(1, 8))
    n = draw(st.integers(1, 10))
    step = draw(st.integers(1, n))
    width, height = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    if n * step < 9:  # keep the number of tiles small
        width, height = min(width, 12 * cell), min(height, 12 * cell)
    rest = draw(st.lists(st.booleans(), min_size=1, max_size=12))
    return grid_of(width, height, n * cell, step * cell, cell, rest if draw(st.booleans()) else None)


def values_of(grid: TileGrid, index: int, field) -> np.ndarray:
    x, y = grid.positions[index] // grid.cell
    rows, columns = np.mgrid[y : y + grid.side, x : x + grid.side]
    return field(rows, columns)


def stitched(grid: TileGrid, field, tissue: np.ndarray | None = None) -> np.ndarray:
    """The whole map of a field of the cells' rows and columns, or of tiles by index."""

    def tiles(start, stop):
        make = field if getattr(field, "by_index", False) else lambda i: values_of(grid, i, field)
        return np.stack([make(i) for i in range(start, stop)]).astype(np.float32)

    bands = list(stitch(grid, tiles, tissue))
    assert all(0 < len(band) <= grid.side and band.dtype == np.float32 for band in bands)
    values = np.concatenate(bands)
    assert values.shape == (grid.rows, grid.columns)
    return values


def union(grid: TileGrid) -> np.ndarray:
    covered = np.zeros((grid.rows, grid.columns), bool)
    for x, y in grid.positions // grid.cell:
        covered[y : y + grid.side, x : x + grid.side] = True
    return covered


def random_tiles(grid: TileGrid, seed: int):
    tiles = np.random.default_rng(seed).random((len(grid.positions), grid.side, grid.side), np.float32)

    def by_index(index: int) -> np.ndarray:
        return tiles[index]

    by_index.by_index = True  # pyright: ignore[reportFunctionMemberAccess]
    return by_index


@pytest.mark.parametrize("side", [1, 2, 7, 16, 64])
def test_the_window_is_scipys_gaussian_above_its_floor(side):
    window = gaussian_window(side)
    assert window.dtype == np.float32
    profile = np.maximum(gaussian(side, side / 8), 1e-3)
    assert window == pytest.approx(np.outer(profile, profile), rel=1e-6)
    assert window.min() > 0
    assert window.max() <= 1
    for other in (window.T, window[::-1], window[:, ::-1]):
        assert (window == other).all()


def test_the_window_never_vanishes():
    assert gaussian_window(64, 0.01).min() == pytest.approx(1e-6)


@settings(max_examples=80, deadline=None)
@given(grids(), st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_constant_and_linear_fields_are_stitched_exactly(grid, constant, down, across):
    def field(rows, columns):
        return constant + (down * rows + across * columns) / 200

    values, covered = stitched(grid, field), union(grid)[: grid.rows, : grid.columns]
    expected = field(*np.mgrid[: grid.rows, : grid.columns])
    assert np.abs(values - expected)[covered].max(initial=0) <= 1e-6
    assert (values[~covered] == 0).all()
    if len(grid.positions) == len(grid_of(grid.width, grid.height, grid.tile, grid.step, grid.cell).positions):
        assert covered.all()


@settings(max_examples=60, deadline=None)
@given(grids(), st.integers(0, 1000))
def test_bands_equal_the_map_made_in_memory(grid, seed):
    tiles, window = random_tiles(grid, seed), gaussian_window(grid.side)
    size = (grid.rows + grid.side, grid.columns + grid.side)
    sums, weights = np.zeros(size), np.zeros(size)
    for index, (x, y) in enumerate(grid.positions // grid.cell):
        sums[y : y + grid.side, x : x + grid.side] += tiles(index) * window.astype(float)
        weights[y : y + grid.side, x : x + grid.side] += window
    with np.errstate(invalid="ignore"):
        expected = np.where(weights > 0, sums / weights, 0)[: grid.rows, : grid.columns]
    assert np.abs(stitched(grid, tiles) - expected).max(initial=0) <= 1e-6


def test_many_tiles_in_a_row_give_the_same_as_few_at_a_time(monkeypatch):
    grid = grid_of(2000, 40, 32, 16, 4)
    assert (grid.positions[:, 1] == 0).sum() > 64
    at_once = stitched(grid, random_tiles(grid, 1))
    monkeypatch.setattr("histoloc.slides.stitch._AT_ONCE", 1)
    assert (stitched(grid, random_tiles(grid, 1)) == at_once).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_seam_blends_from_one_tile_to_the_other(axis):
    size = (64, 112) if axis == 1 else (112, 64)
    grid = grid_of(size[1], size[0], 64, 48, 1)
    assert len(grid.positions) == 2

    def tiles(index):
        return np.full((64, 64), index, np.float32)

    tiles.by_index = True  # pyright: ignore[reportFunctionMemberAccess]
    line = np.moveaxis(stitched(grid, tiles), axis, 0)
    assert np.abs(line - line[:, :1]).max() <= 1e-6  # the same all along the seam
    line = line[:, 0]
    assert (line[:48] == 0).all()
    assert (line[64:] == 1).all()
    assert (np.diff(line) >= 0).all()
    assert line[48] < 0.1
    assert line[55] + line[56] == pytest.approx(1, abs=1e-6)  # half way between the centres


def test_one_tile_larger_than_the_slide_is_cut():
    grid = grid_of(19, 10, 32, 32, 4)
    tile = np.random.default_rng(0).random((8, 8), np.float32)

    def tiles(index):
        return tile

    tiles.by_index = True  # pyright: ignore[reportFunctionMemberAccess]
    assert stitched(grid, tiles) == pytest.approx(tile[:3, :5], rel=1e-6)


def test_a_slide_without_tiles_is_empty_bands():
    grid = grid_of(100, 300, 32, 32, 4, kept=[False])
    values = stitched(grid, lambda rows, columns: rows)
    assert values.shape == (75, 25)
    assert not values.any()


def test_where_there_is_no_tissue_the_map_is_0():
    grid = grid_of(100, 300, 32, 24, 4)
    tissue = np.zeros((30, 10), bool)
    tissue[5:15, 2:7] = True
    values = stitched(grid, lambda rows, columns: rows * 0 + 0.5, tissue)
    inside = tissue_rows(grid, tissue, 0, grid.rows)
    assert (values[inside] == 0.5).all()
    assert not values[~inside].any()
    assert inside.sum() == 25 * 12  # cells whose centres lie in rows 50 to 150, columns 20 to 70


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(rows: int) -> int:
        # Few tiles, since making them is not what is measured.
        grid = grid_of(20_000 * 8, rows * 8, 256, 192, 8, kept=[True] + [False] * 41)
        assert (grid.columns, grid.rows) == (20_000, rows)
        one = np.ones((64, 32, 32), np.float32)
        tracemalloc.start()
        bands = map(as_bytes, stitch(grid, lambda start, stop: one[: stop - start], None))
        write_map(tmp_path / f"{rows}.bin", bands, (rows, 20_000))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (tmp_path / f"{rows}.bin").unlink()
        return result

    few, many = peak(100), peak(1000)
    assert many < 40 * 32 * 20_000  # bytes: some buffers of doubles as high as a tile
    assert many < 1.1 * few + 1e6  # the grid's positions


@pytest.mark.parametrize("tall", [None, 1, 5, 37])
def test_a_map_on_disk_is_rounded_and_read_in_any_bands(tmp_path, tall):
    values = np.random.default_rng(0).random((37, 11), np.float32)
    values[0, :3] = [0, 1, 0.5]
    whole = write_map(tmp_path / "map.raw", map(as_bytes, (values[:10], values[10:11], values[11:])), (37, 11))
    expected = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    assert expected[0, :3].tolist() == [0, 255, 128]
    assert (tmp_path / "map.raw").read_bytes() == expected.tobytes()
    bands = list(whole.bands(tall))
    assert (np.concatenate(bands) == expected).all()
    assert {len(band) for band in bands[:-1]} <= {tall}
