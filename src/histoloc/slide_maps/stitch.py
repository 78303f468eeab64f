"""One map from overlapping tiles, band by band, in memory that does not grow with the slide's height."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from histoloc.errors import InputError
from histoloc.slide_maps.grid import TileGrid

Tiles = Callable[[NDArray[np.int64]], NDArray[np.floating]]

_AT_ONCE = 64  # tiles asked for at a time
_ROUNDING = 1e-6  # by so much values may leave [0, 1]
_FLOOR = 1e-3  # of a weight along one axis, its greatest being 1


class Band(NamedTuple):
    """Some complete rows of a map.

    Attributes:
        first_row: of the map.
        values: (r, columns) float32; 0 where no tile lies.
        covered: (r, columns) bool, where a tile lies.
    """

    first_row: int
    values: NDArray[np.float32]
    covered: NDArray[np.bool_]


def gaussian_window(side: int, sigma_share: float = 0.125) -> NDArray[np.float32]:
    """Weights of a tile's cells: greatest at its centre, so that what it sees only half of counts least.

    The product of the same Gaussian along both axes, whose standard deviation is `sigma_share` of the side, as MONAI
    and nnU-Net have it. Along each axis a weight is at least 1/1000 of the greatest: where tiles do not overlap, the
    border has only them.

    Args:
        side: of a tile in cells, from 1 up.
        sigma_share: above 0.

    Returns:
        (side, side), in (0, 1], symmetric.
    """
    if side < 1 or not sigma_share > 0:
        raise ValueError(f"side {side}, sigma_share {sigma_share:g}: give a side from 1 and a share above 0")
    distance = np.arange(side) - (side - 1) / 2
    profile = np.maximum(np.exp(-0.5 * (distance / (sigma_share * side)) ** 2), _FLOOR)
    return np.outer(profile, profile).astype(np.float32)


def stitch_bands(grid: TileGrid, tiles: Tiles, window: NDArray[np.float32]) -> Iterator[Band]:
    """Weighted mean of all tiles over each cell, from top to bottom.

    Sums are kept in double precision and taken in the grid's order, so that the map depends on the tiles and on
    nothing else. In memory are one row of tiles' worth of sums and weights; the values of at most 64 tiles are asked
    for at a time.

    Args:
        grid: of the slide; its tiles may have any gaps.
        tiles: gives the values of tiles by their indices in the grid, which ascend: (b,) -> (b, n, n), with n the
            grid's `side`. What reaches beyond the map is dropped.
        window: (n, n) weights above 0.

    Yields:
        Bands without gap or overlap, each of at most n rows, that together are the map of `grid.rows` rows.

    Raises:
        ValueError: window or tiles are not of the grid's side.
    """
    n = grid.side
    if window.shape != (n, n):
        raise ValueError(f"a window of {window.shape} does not fit tiles of {n} x {n} cells")
    sums = _Sums(window, grid.columns)
    for y, indices in _tile_rows(grid):
        yield from sums.finish(y)
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            values = tiles(some)
            if values.shape != (len(some), n, n):
                raise ValueError(f"tiles of {values.shape} are not {len(some)} of {n} x {n} cells")
            for x, value in zip(grid.positions[some, 0] // grid.cell, values, strict=True):
                sums.add(int(x), value)
    yield from sums.finish(grid.rows)


class _Sums:
    """Weighted sums over the rows of the map that tiles are being added to, from row `top` on."""

    def __init__(self, window: NDArray[np.floating], columns: int) -> None:
        self.window = window.astype(np.float64)
        self.sums = np.zeros((len(window), columns))
        self.weights = np.zeros((len(window), columns))
        self.top = 0

    def add(self, x: int, tile: NDArray[np.floating]) -> None:
        """Add a tile whose first row is `top`; what reaches beyond the last column is dropped."""
        n, columns = self.sums.shape
        inside = min(n, columns - x)
        weight = self.window[:, :inside]
        self.sums[:, x : x + inside] += tile[:, :inside] * weight
        self.weights[:, x : x + inside] += weight

    def finish(self, below: int) -> Iterator[Band]:
        """Give the rows above `below`, to which no more tiles come, and move down to it."""
        n, columns = self.sums.shape
        while self.top < below:
            r = min(below - self.top, n)
            covered = self.weights[:r] > 0
            values = np.divide(self.sums[:r], self.weights[:r], out=np.zeros((r, columns)), where=covered)
            yield Band(self.top, values.astype(np.float32), covered)
            for array in (self.sums, self.weights):
                array[: n - r] = array[r:]
                array[n - r :] = 0
            self.top += r


def tissue_rows(grid: TileGrid, tissue: NDArray[np.bool_] | None, first: int, number: int) -> NDArray[np.bool_]:
    """Which cells of some rows of the map have tissue at their centre.

    Args:
        grid: of the slide.
        tissue: (H, W) bool over the whole slide; None where all of it is looked at.
        first: row of the map.
        number: of rows.

    Returns:
        (number, columns) bool.
    """
    if tissue is None:
        return np.ones((number, grid.columns), bool)
    rows = (np.arange(first, first + number) + 0.5) * grid.cell * tissue.shape[0] / grid.height
    columns = (np.arange(grid.columns) + 0.5) * grid.cell * tissue.shape[1] / grid.width
    i = np.clip(rows.astype(np.int64), 0, tissue.shape[0] - 1)
    j = np.clip(columns.astype(np.int64), 0, tissue.shape[1] - 1)
    return tissue[np.ix_(i, j)]


def _tile_rows(grid: TileGrid) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """First row of cells, and indices, of the tiles of each row."""
    ys = grid.positions[:, 1] // grid.cell
    for start, stop in zip(*_runs(ys), strict=True):
        yield int(ys[start]), np.arange(start, stop, dtype=np.int64)


def _runs(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of equal values begin and end."""
    changes = np.flatnonzero(np.diff(values)) + 1
    edges = np.unique(np.concatenate([[0], changes, [len(values)]])).astype(np.int64)
    return edges[:-1], edges[1:]


class DiskMap:
    """A map of bytes in a plain file: written from top to bottom, then read at any rows.

    It is written beside its place and put there with its last row, so a file at `path` is a whole map. Nothing is
    mapped into memory. Making the object neither reads nor writes anything.

    Args:
        path: the file; rows of bytes, nothing else.
        rows: height, from 1 up.
        columns: width, from 1 up.
    """

    def __init__(self, path: Path, rows: int, columns: int) -> None:
        self.path = Path(path)
        self.rows = rows
        self.columns = columns
        self._written = 0
        self._part = self.path.with_name(f".{self.path.stem}.{os.getpid()}.part{self.path.suffix}")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows, self.columns

    def write_band(self, first_row: int, band: NDArray[np.floating]) -> None:
        """Append complete rows, each value v as the byte round(255 v).

        Args:
            first_row: the row after the last one that was written; 0 begins the map anew.
            band: (r, columns) in [0, 1].

        Raises:
            InputError: the file cannot be written; the disk may be full.
            ValueError: rows are missing or too many, or values lie outside [0, 1].
        """
        if first_row not in (0, self._written):
            raise ValueError(f"{self.path}: row {first_row} does not follow the {self._written} rows written so far")
        if band.ndim != 2 or band.shape[1] != self.columns or first_row + len(band) > self.rows:
            raise ValueError(f"{self.path}: a band of {band.shape} at row {first_row} does not fit {self.shape}")
        if band.size and not (band.min() >= -_ROUNDING and band.max() <= 1 + _ROUNDING):
            raise ValueError(f"{self.path}: values from {band.min():g} to {band.max():g} are not in [0, 1]")
        data = np.rint(np.clip(band, 0, 1) * 255.0).astype(np.uint8)
        with self._writing():
            with self._part.open("wb" if first_row == 0 else "ab") as file:
                file.write(data.tobytes())
            self._written = first_row + len(band)
            if self._written == self.rows:
                self._part.replace(self.path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            self._written = 0
            with suppress(OSError):  # the first error is the one to tell
                self._part.unlink(missing_ok=True)
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror or error}); choose another place or make room"
            ) from error

    def read(self, first_row: int, end_row: int) -> NDArray[np.uint8]:
        """Rows [first_row, end_row) of a whole map: (end_row - first_row, columns).

        Raises:
            InputError: there is no such file, or it is not of the map's size.
            ValueError: the map has no such rows.
        """
        if not 0 <= first_row <= end_row <= self.rows:
            raise ValueError(f"{self.path}: has {self.rows} rows, not {first_row} to {end_row}")
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(first_row * self.columns)
                data = file.read((end_row - first_row) * self.columns)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error}); make the map again") from error
        if size != self.rows * self.columns:
            raise InputError(f"{self.path}: is no map of {self.columns}x{self.rows} cells; make the map again")
        return np.frombuffer(data, np.uint8).reshape(-1, self.columns)


def write_map(path: Path, bands: Iterable[Band], shape: tuple[int, int]) -> DiskMap:
    """Write the bands of `stitch_bands`, values in [0, 1], to a `DiskMap` of (rows, columns).

    Raises:
        InputError: the file cannot be written.
        ValueError: the bands are not those of a map of this shape, or values lie outside [0, 1].
    """
    disk = DiskMap(path, *shape)
    written = 0
    for band in bands:
        disk.write_band(band.first_row, band.values)
        written = band.first_row + len(band.values)
    if written != disk.rows:
        raise ValueError(f"{path}: the bands end at row {written} of {disk.rows}")
    return disk
