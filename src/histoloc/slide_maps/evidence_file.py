"""What a model says of the tiles of a slide, kept in a file that a killed process leaves usable."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histoloc.errors import InputError
from histoloc.work_folder import write_json

FORMAT = 1


class EvidenceFile:
    """Class probabilities and evidence of tiles: records of one size, appended in the order of the grid.

    `evidence.bin` holds the records, little-endian float32: K probabilities, then C x side x side of evidence.
    `evidence.json` says whose they are. Opened with the same fingerprint and sizes it goes on, without its last
    record where that is torn; opened with others it starts over, which a note says. One process at a time may write.

    Args:
        folder: where both files lie; it is made when absent.
        fingerprint: of everything that the records depend on: slide, model, grid.
        tiles: how many records there will be.
        classes: K probabilities of each tile; 0 where the method does not classify.
        maps: C maps of each tile.
        side: of a map in cells.

    Raises:
        InputError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, fingerprint: str, tiles: int, classes: int, maps: int, side: int) -> None:
        if tiles < 0 or classes < 0 or maps < 1 or side < 1:
            raise ValueError(f"no file of {tiles} tiles with {classes} classes and {maps} maps of side {side}")
        self.path = Path(folder) / "evidence.bin"
        self.tiles, self.classes, self.maps, self.side = tiles, classes, maps, side
        self._header_path = self.path.with_suffix(".json")
        self._record = np.dtype([("probabilities", "<f4", (classes,)), ("evidence", "<f4", (maps, side, side))])
        self._done = 0
        header = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "tiles": tiles,
            "classes": classes,
            "maps": maps,
            "side": side,
        }
        with self._told("written"):
            if self._header() == header and self.path.is_file():
                self.truncate(min(self.path.stat().st_size // self._record.itemsize, tiles))
            else:
                if self.path.is_file() and self.path.stat().st_size:
                    text = f"note: {folder}: was begun on another device, in another precision or of another slide file"
                    print(f"{text}; its tiles are made again", file=sys.stderr)
                self.path.unlink(missing_ok=True)  # first: records must never lie beside another's header
                write_json(self._header_path, header)
                self.path.touch()

    def _header(self) -> object:
        """What the header says, or None where it is absent or damaged."""
        if not self._header_path.is_file():
            return None
        with suppress(ValueError):
            return json.loads(self._header_path.read_text(encoding="utf-8"))
        return None

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be {done} ({error.strerror or error}); make room or repair the folder and call "
                f"again, complete tiles are kept"
            ) from error

    @property
    def done(self) -> int:
        """How many records are complete."""
        return self._done

    def done_in_batches(self, batch: int) -> int:
        """How many records lie in complete batches: all of a complete file, else a multiple of `batch`."""
        return self._done if self._done == self.tiles else self._done // batch * batch

    def truncate(self, number: int) -> None:
        """Keep the first records only, and no torn one.

        Args:
            number: from 0 to the number of complete records.

        Raises:
            InputError: the file cannot be written.
            ValueError: there are fewer records.
        """
        with self._told("written"), self.path.open("r+b") as file:
            size = file.seek(0, 2)
            if not 0 <= number * self._record.itemsize <= size:
                raise ValueError(f"{self.path}: has no {number} records")
            if size != number * self._record.itemsize:
                file.truncate(number * self._record.itemsize)
            self._done = number

    def append(self, probabilities: NDArray[np.floating], evidence: NDArray[np.floating]) -> None:
        """Write the records of the next tiles through to the system: killed afterwards, none of them is lost.

        Args:
            probabilities: (b, K) float32.
            evidence: (b, C, side, side) float32, any range.

        Raises:
            InputError: the file cannot be written, as on a full disk, or a value is not finite.
            ValueError: shapes are others, or there are more records than tiles.
        """
        number = len(evidence)
        if probabilities.shape != (number, self.classes) or evidence.shape[1:] != (self.maps, self.side, self.side):
            raise ValueError(
                f"{self.path}: probabilities {probabilities.shape} and evidence {evidence.shape} do not fit "
                f"{self.classes} classes and {self.maps} maps of side {self.side}"
            )
        if self._done + number > self.tiles:
            raise ValueError(f"{self.path}: {self._done} + {number} records are more than {self.tiles} tiles")
        if not (np.isfinite(probabilities).all() and np.isfinite(evidence).all()):
            raise InputError(
                f"{self.path}: the model gave values that are not finite for tiles from {self._done} on; its weights "
                f"are damaged, or it needs full precision"
            )
        records = np.empty(number, self._record)
        records["probabilities"], records["evidence"] = probabilities, evidence
        before = self._done * self._record.itemsize
        with self._told("written"), self.path.open("r+b", buffering=0) as file:
            try:
                file.seek(before)
                rest = memoryview(records.tobytes())
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):  # the next opening cuts it as well
                    file.truncate(before)
                raise
        self._done += number

    def probabilities(self) -> NDArray[np.float32]:
        """(done, K) class probabilities of the complete records.

        Raises:
            InputError: the file cannot be read.
        """
        return self._read(np.arange(self._done), 0, (self.classes,))

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Evidence of some tiles, in the order of the indices: (len(indices), C, side, side).

        The file is read, not mapped, so that no more of it is in memory than was asked for.

        Raises:
            InputError: the file cannot be read.
            IndexError: there are no such records.
        """
        return self._read(np.asarray(indices, np.int64), 4 * self.classes, (self.maps, self.side, self.side))

    def _read(self, indices: NDArray[np.int64], offset: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if len(indices) and not (indices.min() >= 0 and indices.max() < self._done):
            raise IndexError(f"{self.path}: holds records 0 to {self._done - 1}, not {indices.min()}..{indices.max()}")
        found = np.empty((len(indices), *shape), "<f4")
        length = found[:1].nbytes
        if length == 0:
            return found
        bytes_ = found.reshape(len(indices), -1).view(np.uint8)
        with self._told("read"), self.path.open("rb", buffering=0) as file:
            for row, index in zip(bytes_, indices, strict=True):
                file.seek(int(index) * self._record.itemsize + offset)
                if file.readinto(row.data) != length:
                    raise InputError(f"{self.path}: ends before record {index}; delete it and call again")
        return found
