"""What runs, what is done, and how long the rest will take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from histoloc.benchmark.cells import PlannedCell, epochs_logged

State = Literal["waiting", "running", "done", "failed"]
LISTED = 5  # finished cells, and failures, in the live view


@dataclass
class Track:
    """A cell as the scheduler sees it.

    Attributes:
        cell: which.
        state: where it stands.
        logged: epochs in its log, of this call and of earlier ones.
        seconds: that these epochs took.
        before: the same two when this call began.
        started: time at which its process was started (`time.monotonic`).
        ended: time at which it ended.
        said: its scores, or what went wrong.
    """

    cell: PlannedCell
    state: State = "waiting"
    logged: int = 0
    seconds: float = 0.0
    before: tuple[int, float] = field(init=False)
    started: float | None = None
    ended: float | None = None
    said: str = ""

    def __post_init__(self) -> None:
        self.look()
        self.before = (self.logged, self.seconds)

    def look(self) -> None:
        """Read the cell's log."""
        self.logged, self.seconds = epochs_logged(self.cell.folder)

    @property
    def wall(self) -> float:
        """Seconds since its start, or from start to end."""
        if self.started is None:
            return 0.0
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    @property
    def share(self) -> float:
        """Of the cell's epochs, those that are done, in [0, 1]."""
        if self.state in ("done", "failed"):
            return 1.0
        return min(self.logged / self.cell.epochs, 1.0) if self.cell.epochs else 0.0


def seconds_left(tracks: Sequence[Track], workers: int) -> float | None:
    """Estimate the time until all cells are done; None while nothing is measured that it could be taken from.

    An epoch takes what epochs of the same row took, or else the mean over the rows; start and evaluation of a cell take
    what they took in the cells that ended in this call; workers share the work evenly.
    """
    open_ = [track for track in tracks if track.state in ("waiting", "running")]
    if not open_:
        return 0.0
    measured: dict[str, list[float]] = {}
    for track in tracks:
        if track.logged:
            measured.setdefault(track.cell.row.name, []).append(track.seconds / track.logged)
    by_row = {row: fmean(values) for row, values in measured.items()}
    rest = [
        track.wall - (track.seconds - track.before[1]) for track in tracks if track.state == "done" and track.started
    ]
    total = fmean(rest) * sum(track.state == "waiting" for track in open_) if rest else 0.0
    for track in open_:
        epochs = max(track.cell.epochs - track.logged, 0)
        if epochs and not by_row:
            return None
        if epochs:
            total += epochs * by_row.get(track.cell.row.name, fmean(by_row.values()))
    if not rest and not by_row:
        return None
    return total / max(1, min(workers, len(open_)))


def clock(seconds: float | None) -> str:
    """3725 -> 1:02:05; a question mark where unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Lines:
    """One plain line for each cell that starts or ends: for logs and pipes."""

    def __init__(self, console: Console, tracks: Sequence[Track], workers: int) -> None:
        self.console, self.tracks, self.workers = console, tracks, workers
        self.began = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, track: Track) -> None:
        """A cell's process was started."""
        at = f", goes on after epoch {track.logged}" if track.logged else ""
        self._say(f"{track.cell.label}: started{at}")

    def ended(self, track: Track) -> None:
        """A cell is done, or has failed."""
        self._say(f"{track.cell.label}: {track.state} in {clock(track.wall)}, {track.said}")

    def refresh(self) -> None:
        """Called several times a second."""

    def _say(self, text: str) -> None:
        self.console.print(f"[{self._standing()}] {text}", markup=False, highlight=False, soft_wrap=True)

    def _standing(self) -> str:
        over = sum(track.state in ("done", "failed") for track in self.tracks)
        left = clock(seconds_left(self.tracks, self.workers))
        return f"{over}/{len(self.tracks)}, {clock(time.monotonic() - self.began)} elapsed, about {left} left"


class Screen(Lines):
    """The same as a picture that is drawn anew: for a terminal."""

    def __init__(self, console: Console, tracks: Sequence[Track], workers: int) -> None:
        super().__init__(console, tracks, workers)
        self.live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> "Screen":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self.live.stop()

    def started(self, track: Track) -> None:
        """A cell's process was started: the picture shows it."""
        self.refresh()

    def ended(self, track: Track) -> None:
        """A cell is done, or has failed: the picture shows it."""
        self.refresh()

    def refresh(self) -> None:
        """Draw."""
        self.live.update(self.picture(), refresh=True)

    def picture(self) -> Group:
        """Overall bar, a line per running cell, the last finished ones, failures."""
        bar = Table.grid()  # the bar alone ends no line
        bar.add_row(ProgressBar(total=len(self.tracks), completed=sum(track.share for track in self.tracks), width=60))
        running = Table.grid(padding=(0, 2))
        for track in self.tracks:
            if track.state == "running":
                pace = f"{track.seconds / track.logged:.1f} s per epoch" if track.logged else "starting"
                epoch = f"epoch {track.logged}/{track.cell.epochs}" if track.cell.epochs else "nothing to learn"
                running.add_row(Text("running", style="cyan"), *map(Text, (track.cell.label, epoch, pace)))
        for state, style in (("done", "green"), ("failed", "red")):
            ended = sorted((t for t in self.tracks if t.state == state and t.ended is not None), key=_end)
            for track in ended[-LISTED:]:
                running.add_row(Text(state, style=style), Text(track.cell.label), Text(clock(track.wall)), track.said)
        return Group(Text(self._standing()), bar, running)


def choose_view(console: Console, tracks: Sequence[Track], workers: int) -> Lines:
    """A picture on a terminal, plain lines elsewhere."""
    return (Screen if console.is_terminal else Lines)(console, tracks, workers)


def _end(track: Track) -> float:
    return track.ended or 0.0
