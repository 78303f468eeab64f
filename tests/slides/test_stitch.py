import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal.windows import gaussian

from histoloc.errors import InputError
from histoloc.slide_maps.grid import TileGrid, axis_starts
from histoloc.slide_maps.stitch import Band, DiskMap, gaussian_window, stitch_bands, write_map


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
    kept = draw(st.lists(st.booleans(), min_size=1, max_size=12))
    return grid_of(width, height, n * cell, step * cell, cell, kept if draw(st.booleans()) else None)


def values_of(grid: TileGrid, index: int, field) -> np.ndarray:
    x, y = grid.positions[index] // grid.cell
    rows, columns = np.mgrid[y : y + grid.side, x : x + grid.side]
    return field(rows, columns)


def stitched(grid: TileGrid, field, window: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The whole map of a field of the cells' rows and columns, or of tiles by index."""

    def tiles(indices):
        make = field if getattr(field, "by_index", False) else lambda i: values_of(grid, i, field)
        return np.stack([make(int(i)) for i in indices]).astype(np.float32)

    window = gaussian_window(grid.side) if window is None else window
    values, covered, end = [], [], 0
    for first_row, band, here in stitch_bands(grid, tiles, window):
        assert first_row == end
        assert 0 < len(band) <= grid.side
        assert band.dtype == np.float32
        assert here.shape == band.shape == (len(band), grid.columns)
        end += len(band)
        values.append(band)
        covered.append(here)
    assert end == grid.rows
    return np.concatenate(values), np.concatenate(covered)


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
    with pytest.raises(ValueError, match="sigma_share"):
        gaussian_window(64, 0)


@settings(max_examples=80, deadline=None)
@given(grids(), st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_constant_and_linear_fields_are_stitched_exactly(grid, constant, down, across):
    def field(rows, columns):
        return constant + (down * rows + across * columns) / 200

    values, covered = stitched(grid, field)
    expected = field(*np.mgrid[: grid.rows, : grid.columns])
    assert (covered == union(grid)).all()
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
    values, covered = stitched(grid, tiles)
    assert (covered == (weights > 0)[: grid.rows, : grid.columns]).all()
    assert np.abs(values - expected).max(initial=0) <= 1e-6


def test_many_tiles_in_a_row_give_the_same_as_few_at_a_time(monkeypatch):
    grid = grid_of(2000, 40, 32, 16, 4)
    assert (grid.positions[:, 1] == 0).sum() > 64
    at_once = stitched(grid, random_tiles(grid, 1))[0]
    monkeypatch.setattr("histoloc.slide_maps.stitch._AT_ONCE", 1)
    assert (stitched(grid, random_tiles(grid, 1))[0] == at_once).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_seam_blends_from_one_tile_to_the_other(axis):
    size = (64, 112) if axis == 1 else (112, 64)
    grid = grid_of(size[1], size[0], 64, 48, 1)
    assert len(grid.positions) == 2

    def tiles(index):
        return np.full((64, 64), index, np.float32)

    tiles.by_index = True  # pyright: ignore[reportFunctionMemberAccess]
    line = np.moveaxis(stitched(grid, tiles)[0], axis, 0)
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
    values, covered = stitched(grid, tiles)
    assert values.shape == (3, 5)
    assert values == pytest.approx(tile[:3, :5], rel=1e-6)
    assert covered.all()


def test_a_slide_without_tiles_is_empty_bands():
    grid = grid_of(100, 300, 32, 32, 4, kept=[False])
    values, covered = stitched(grid, lambda rows, columns: rows)
    assert values.shape == (75, 25)
    assert not values.any()
    assert not covered.any()


def test_what_is_not_of_the_grids_side_is_refused():
    grid = grid_of(100, 100, 32, 32, 4)
    with pytest.raises(ValueError, match="window"):
        next(stitch_bands(grid, lambda indices: np.ones((len(indices), 8, 8)), np.ones((7, 7), np.float32)))
    with pytest.raises(ValueError, match="tiles of"):
        next(stitch_bands(grid, lambda indices: np.ones((len(indices), 7, 7)), gaussian_window(8)))


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(rows: int) -> int:
        # Few tiles, since making them is not what is measured.
        grid = grid_of(20_000 * 8, rows * 8, 256, 192, 8, kept=[True] + [False] * 41)
        assert (grid.columns, grid.rows) == (20_000, rows)
        one = np.ones((64, 32, 32), np.float32)
        tracemalloc.start()
        write_map(
            tmp_path / f"{rows}.bin",
            stitch_bands(grid, lambda indices: one[: len(indices)], gaussian_window(32)),
            (rows, 20_000),
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (tmp_path / f"{rows}.bin").unlink()
        return found

    few, many = peak(100), peak(1000)
    assert many < 40 * 32 * 20_000  # bytes: some buffers of doubles as high as a tile
    assert many < 1.1 * few + 1e6  # the grid's positions


def test_a_map_on_disk_is_rounded_and_read_at_any_rows(tmp_path):
    values = np.random.default_rng(0).random((37, 11), np.float32)
    values[0, :3] = [0, 1, 0.5]
    disk = DiskMap(tmp_path / "work" / "map.bin", 37, 11)
    for start, stop in [(0, 10), (10, 11), (11, 37)]:
        assert not disk.path.exists()  # half a map is none
        disk.write_band(start, values[start:stop])
    expected = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    assert expected[0, :3].tolist() == [0, 255, 128]
    assert disk.path.read_bytes() == expected.tobytes()
    assert list(disk.path.parent.iterdir()) == [disk.path]
    for start, stop in [(0, 37), (5, 6), (36, 37), (4, 4)]:
        assert (disk.read(start, stop) == expected[start:stop]).all()
    disk.write_band(0, values[:5])  # begins anew; the old one stays until the new one is whole
    assert (DiskMap(disk.path, 37, 11).read(0, 37) == expected).all()


def test_write_map_takes_bands_as_they_come(tmp_path):
    grid = grid_of(203, 157, 32, 24, 4, kept=[True, True, False])
    tiles = random_tiles(grid, 3)
    bands = stitch_bands(grid, lambda indices: np.stack([tiles(i) for i in indices]), gaussian_window(8))
    disk = write_map(tmp_path / "map.bin", bands, (grid.rows, grid.columns))
    expected = stitched(grid, tiles)[0]
    assert np.abs(disk.read(0, grid.rows) - 255.0 * expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("first_row", "band", "reason"),
    [
        (3, np.zeros((2, 4)), "does not follow"), (2, np.zeros((1, 5)), "does not fit"),
        (2, np.zeros((4, 4)), "does not fit"), (2, np.full((1, 4), 1.1), "not in"),
        (2, np.full((1, 4), -0.1), "not in"), (2, np.full((1, 4), np.nan), "not in"),
    ],
)  # fmt: skip
def test_bands_that_make_no_map_are_refused(tmp_path, first_row, band, reason):
    disk = DiskMap(tmp_path / "map.bin", 5, 4)
    disk.write_band(0, np.zeros((2, 4)))
    with pytest.raises(ValueError, match=reason):
        disk.write_band(first_row, band)
    with pytest.raises(InputError, match=r"map\.bin: cannot be read"):
        disk.read(0, 1)


def test_bands_that_end_early_are_no_map(tmp_path):
    band = Band(0, np.zeros((2, 4), np.float32), np.ones((2, 4), bool))
    with pytest.raises(ValueError, match="end at row 2 of 5"):
        write_map(tmp_path / "map.bin", [band], (5, 4))
    assert not (tmp_path / "map.bin").exists()


def test_rows_that_are_not_there_are_refused(tmp_path):
    disk = DiskMap(tmp_path / "map.bin", 5, 4)
    disk.write_band(0, np.zeros((5, 4)))
    with pytest.raises(ValueError, match="has 5 rows"):
        disk.read(4, 6)
    with pytest.raises(InputError, match="no map of 4x6"):
        DiskMap(disk.path, 6, 4).read(0, 5)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    disk = DiskMap(tmp_path / "map.bin", 5, 4)
    disk.write_band(0, np.zeros((2, 4)))

    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"map\.bin: cannot be written \(No space left"):
        disk.write_band(2, np.zeros((2, 4)))
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
