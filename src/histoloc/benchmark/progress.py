"""What runs, what is done, and how long the rest will take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TextIO

from histoloc.benchmark.cells import PlannedCell, epochs_logged
from histoloc.progress import Bar


@dataclass
class Track:
    """How far a cell is.

    Attributes:
        cell: which.
        state: where it stands.
        result: its scores, or what went wrong.
        started: time at which it was begun (`time.monotonic`).
    """

    cell: PlannedCell
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    result: str = ""
    started: float = 0.0

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ("done", "failed")

    @property
    def rest(self) -> int:
        """Epochs that are left; the evaluation counts as one."""
        return 0 if self.over else max(1, self.cell.epochs + 1 - epochs_logged(self.cell.run)[0])


class Watch:
    """A bar over all epochs, and a line in `file` for each cell that starts or ends."""

    def __init__(self, tracks: Sequence[Track], file: TextIO) -> None:
        self.tracks, self.file, self.began = tracks, file, time.monotonic()
        self.total = sum(track.cell.epochs + 1 for track in tracks)
        self.bar = Bar(total=self.total, initial=self.total - self.rest, unit="epoch", smoothing=0)

    @property
    def rest(self) -> int:
        """Epochs of all cells that are left."""
        return sum(track.rest for track in self.tracks)

    def refresh(self) -> None:
        """Draw the bar anew, with the cells that run."""
        running = [track for track in self.tracks if track.state == "running"]
        epochs = [f"{track.cell.label}: {track.cell.epochs + 1 - track.rest}/{track.cell.epochs}" for track in running]
        self.bar.set_postfix_str("; ".join(epochs), refresh=False)
        self.bar.update(self.total - self.rest - self.bar.n)

    def started(self, track: Track) -> None:
        """A cell was begun."""
        track.state, track.started = "running", time.monotonic()
        epochs, _ = epochs_logged(track.cell.run)
        self._print(f"{track.cell.label}: started{f', goes on after epoch {epochs}' if epochs else ''}")

    def ended(self, track: Track, state: Literal["done", "failed"], result: str) -> None:
        """A cell is done, or has failed."""
        track.state, track.result = state, result
        self._print(f"{track.cell.label}: {state} in {_clock(time.monotonic() - track.started)}, {result}")

    def _print(self, text: str) -> None:
        elapsed, epochs = time.monotonic() - self.began, self.rest
        done = self.total - self.bar.initial - epochs
        # What is left takes as long an epoch as what was done in this call.
        time_left = _clock(elapsed * epochs / done) if done else "?"
        over = sum(track.over for track in self.tracks)
        standing = f"{over}/{len(self.tracks)}, {_clock(elapsed)} elapsed, about {time_left} left"
        self.bar.write(f"[{standing}] {text}", file=self.file)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
