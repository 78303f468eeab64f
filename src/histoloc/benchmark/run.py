"""Do the cells of a benchmark, each in a process of its own, some of them side by side; then write the tables."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from histoloc.benchmark.cells import LOG_FILE, PlannedCell, plan
from histoloc.benchmark.folder import claim, cores
from histoloc.benchmark.presets import Choices
from histoloc.benchmark.progress import Lines, Track, choose_view
from histoloc.benchmark.results import CELL_FILE, ERROR_FILE
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.work_folder import locked, write_text

LOOK_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
# -P: no file of the working directory is taken for a module.
CELL_COMMAND = (sys.executable, "-P", "-m", "histoloc.benchmark.cell")


@dataclass(frozen=True)
class Outcome:
    """What a call of `benchmark` ended with.

    Attributes:
        finished: number of cells that have their result, from this call or an earlier one.
        failed: the others, and why.
        report: the page, or None where no cell is finished.
    """

    finished: int
    failed: tuple[tuple[PlannedCell, str], ...]
    report: Path | None


def benchmark(kind: str, choices: Choices, *, console: Console | None = None) -> Outcome:
    """Do every cell that is not finished, and write results, tables and report.

    A cell that fails does not stop the others. A cell that was stopped goes on from its last epoch, as `histoloc train
    --resume` does; finished cells are not touched.

    Args:
        kind: table1, ablation or methods.
        choices: what is asked for.
        console: where progress is shown; by default the standard output.

    Raises:
        InputError: before anything is started: the call cannot be done as a whole, or another one is writing there.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; no process is left behind.
    """
    console = console or Console()
    cells, notes = plan(kind, choices)
    workers = worker_environments(choices.devices, choices.workers)
    with locked(choices.out):
        claim(kind, choices, cells)
        summary = read_table(choices.data, check_files=False).summary()
        console.print(summary, markup=False, highlight=False, soft_wrap=True)
        for note in notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        return _finish(cells, workers, choices.out, console)


def _finish(cells: list[PlannedCell], workers: list[dict[str, str]], out: Path, console: Console) -> Outcome:
    tracks = [Track(cell) for cell in cells]
    for track in tracks:
        if track.cell.finished:
            track.state = "done"
    if (before := sum(track.state == "done" for track in tracks)) > 0:
        console.print(f"{before} of {len(tracks)} cells are finished already", highlight=False)
    try:
        with _termination_interrupts(), choose_view(console, tracks, len(workers)) as view:
            do_cells(tracks, workers, view)
    except KeyboardInterrupt:
        finished = sum(track.state == "done" for track in tracks)
        console.print(
            f"stopped: {finished} of {len(tracks)} cells are finished; the same command goes on", highlight=False
        )
        raise
    return _conclude(tracks, out, console)


def do_cells(tracks: list[Track], workers: list[dict[str, str]], view: Lines) -> None:
    """Do the waiting cells in order; each worker, a set of environment variables, does one at a time."""
    waiting = deque(track for track in tracks if track.state == "waiting")
    running: dict[int, tuple[Track, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            for number, environment in enumerate(workers):
                if waiting and number not in running:
                    track = waiting.popleft()
                    running[number] = (track, start(track.cell, environment))
                    track.state, track.started = "running", time.monotonic()
                    view.started(track)
            time.sleep(LOOK_SECONDS)
            for number, (track, process) in list(running.items()):
                code = process.poll()
                track.look()
                if code is not None:
                    del running[number]
                    _end(process)
                    track.ended = time.monotonic()
                    track.state, track.said = _result(track.cell, code)
                    view.ended(track)
            view.refresh()
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            _end(process)


def start(cell: PlannedCell, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a cell's process. It lives no longer than this one, which holds the other end of its standard input."""
    cell.prepare()
    with (cell.folder / LOG_FILE).open("ab") as log:
        return subprocess.Popen(
            [*CELL_COMMAND, str(cell.folder), "--until-stdin-closes"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            # Ctrl-C reaches this process alone, which ends the cells in order.
            start_new_session=True,
        )


def worker_environments(devices: str, workers: int | None) -> list[dict[str, str]]:
    """The environment variables of each worker: its GPU, and its share of the cores.

    Args:
        devices: auto, cpu, or GPU numbers such as `0,1`.
        workers: how many; None = one per GPU, one on a CPU.

    Raises:
        InputError: no such GPU, or no worker.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers {workers} must be at least 1; correct it")
    gpus = _gpus(devices)
    count = workers or len(gpus or ()) or 1
    # What the user set is the user's choice.
    shared = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores() // count))}
    pinned = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)] if gpus else ""} for i in range(count)]
    return [shared | ({} if gpus is None else pin) for pin in pinned]


def _gpus(devices: str) -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES may be; empty = no GPU may be used, None = there is none, so nothing is to be said."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    there = torch.cuda.device_count()
    known = named if len(named) == there and all(named) else [str(i) for i in range(there)]
    if devices == "cpu":
        if torch.backends.mps.is_available():
            raise InputError("--devices cpu: cells take the accelerator of this machine (MPS); leave --devices out")
        return []
    if devices == "auto":
        return known or None
    numbers = [part.strip() for part in devices.split(",")]
    if not all(n.isascii() and n.isdigit() and int(n) < there for n in numbers):
        have = f"the GPUs here are {', '.join(map(str, range(there)))}" if there else "there is no CUDA GPU here"
        raise InputError(f"--devices {devices}: {have}; give auto, cpu, or numbers of GPUs such as 0,1")
    return [known[int(n)] for n in numbers]


def _result(cell: PlannedCell, code: int) -> tuple[Any, str]:
    """Done and its scores, or failed and why; a process that could not say why gets its error.txt here."""
    if code == 0 and (cell.folder / CELL_FILE).is_file():
        return "done", scores(cell)
    error = cell.folder / ERROR_FILE
    if not error.is_file():
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}" + (" (out of memory?)" if code == -9 else "")
        write_text(error, f"the process ended with {how}; the end of {cell.folder / LOG_FILE} may say more\n")
    return "failed", error.read_text(encoding="utf-8").strip()


def scores(cell: PlannedCell) -> str:
    """The main numbers of a finished cell; a dash where undefined."""
    path = cell.folder / "evaluation" / cell.split / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    names = {"cl_error": "Cl. error", "f1_plus": "F1+", "f1_minus": "F1-"}
    values = {name: metrics[key]["value"] for key, name in names.items()}
    return ", ".join(f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in values.items())


def _conclude(tracks: list[Track], out: Path, console: Console) -> Outcome:
    from histoloc.benchmark.report import write_benchmark_report

    failed = tuple((track.cell, track.said) for track in tracks if track.state == "failed")
    finished = sum(track.state == "done" for track in tracks)
    report = write_benchmark_report(out) if finished else None
    console.print(f"{finished} of {len(tracks)} cells are finished", highlight=False)
    for cell, said in failed:
        text = f"failed: {cell.label}: {said} (log: {cell.folder / LOG_FILE})"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if report is not None:
        console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)
    return Outcome(finished, failed, report)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process that has ended or was told to; it is killed when it does not obey."""
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends the work as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
