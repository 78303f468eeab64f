"""Do the cells of a benchmark, each in a process of its own, some of them side by side; then write the tables."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TextIO

import torch

from histoloc.benchmark.cells import PlannedCell, plan
from histoloc.benchmark.presets import Choices
from histoloc.benchmark.progress import Track, Watch
from histoloc.benchmark.results import ERROR_FILE, read_bench
from histoloc.benchmark.results_file import restore, write_cells
from histoloc.benchmark.settings import claim
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.prior import AdaptOptions, drawn_beside
from histoloc.runner import Call, Slot, do_calls
from histoloc.work_folder import locked, write_text

LOG_FILE = "cell.log"


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


def benchmark(kind: str, choices: Choices, *, file: TextIO | None = None) -> Outcome:
    """Do every cell that is not finished, and write results, tables and report.

    A cell that fails does not stop the others. A cell that was stopped goes on from its last epoch, as `histoloc train
    --resume` does; finished cells are not touched.

    Args:
        kind: one of KINDS.
        choices: what is asked for.
        file: for what there is to say; by default the standard output.

    Raises:
        InputError: before anything is started: the call cannot be done as a whole, or another one is writing there.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; no process is left behind.
    """
    cells, notes = plan(kind, choices)
    slots = [Slot(environment) for environment in worker_environments(choices.devices, choices.workers)]
    output = file or sys.stdout
    show = partial(print, file=output, flush=True)
    with locked(choices.out):
        claim(kind, choices, cells)
        show(read_table(choices.data, columns=choices.columns, check_files=False).summary())
        for note in notes:
            show(f"note: {note}")
        if choices.results is not None and (taken := restore(choices.results, cells)):
            show(f"{taken} cells are taken from {choices.results}")
        tracks = [Track(cell, "done" if cell.finished else "waiting") for cell in cells]
        if finished := sum(track.state == "done" for track in tracks):
            show(f"{finished} of {len(tracks)} cells are finished already")
        try:
            configs = [track.cell.config for track in tracks if track.state == "waiting"]
            for drawn in {config.drawn: config for config in configs if config.drawn is not None}.values():
                drawn_beside(str(drawn.prior), Path(str(drawn.drawn)).parent, AdaptOptions(seed=drawn.training.seed))
            watch = Watch(tracks, output)
            with watch.bar:
                for stage in sorted({cell.stage for cell in cells}):
                    _do([track for track in tracks if track.cell.stage == stage], slots, watch)
        finally:
            finished = sum(track.state == "done" for track in tracks)
            stopped = any(track.state in ("waiting", "running") for track in tracks)
            again = "; the same command goes on" if stopped else ""
            show(f"{'stopped: ' if stopped else ''}{finished} of {len(tracks)} cells are finished{again}")
        failed = tuple((track.cell, track.result) for track in tracks if track.state == "failed")
        for cell, reason in failed:
            show(f"failed: {cell.label}: {reason} (log: {cell.folder / LOG_FILE})")
        report = _write_results(choices, cells, show) if finished else None
        return Outcome(finished, failed, report)


def _write_results(choices: Choices, cells: list[PlannedCell], show: Callable[[str], None]) -> Path:
    """Tables, report and, where it was asked for, the file of finished cells."""
    from histoloc.benchmark.report import write_benchmark_report

    report = write_benchmark_report(choices.out)
    show(f"report: {report}")
    if choices.results is not None:
        write_cells(choices.results, cells, read_bench(choices.out))
        show(f"results: {choices.results}")
    return report


def _do(tracks: list[Track], slots: list[Slot], watch: Watch) -> None:
    """Do the waiting cells in order; a cell that fails has the reason in its error.txt."""
    from histoloc.benchmark.cell import run_cell

    waiting = {track.cell.label: track for track in tracks if track.state == "waiting"}
    calls = [Call(key, partial(run_cell, track.cell), track.cell.folder / LOG_FILE) for key, track in waiting.items()]
    with closing(do_calls(calls, slots)) as states:
        for running, ended in states:
            for key in (*running, *ended):
                if waiting[key].state == "waiting":
                    watch.started(waiting[key])
            for key, reason in ended.items():
                cell = waiting[key].cell
                if reason is None:
                    watch.ended(waiting[key], "done", scores(cell))
                else:
                    write_text(cell.folder / ERROR_FILE, f"{reason}\n")
                    watch.ended(waiting[key], "failed", reason)
            watch.refresh()


def worker_environments(devices: str, workers: int | None) -> list[dict[str, str]]:
    """The environment variables of each worker: its GPU, and its share of the cores.

    Args:
        devices: auto, cpu, or GPU numbers such as `0,1`.
        workers: how many; None = one per GPU, one on a CPU.

    Raises:
        InputError: no such GPU.
    """
    gpus = _gpus(devices)
    count = workers or len(gpus)
    # Not on every platform; where it is, it knows of what a batch system grants.
    granted = getattr(os, "sched_getaffinity", None)
    cores = len(granted(0)) if granted else os.cpu_count() or 1
    # What the user set is the user's choice.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))}
    return [threads | gpu for gpu in islice(cycle(gpus), count)]


def _gpus(devices: str) -> list[dict[str, str]]:
    """The variables that show a worker its GPU; none where there is no GPU that had to be hidden."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) == count and all(visible) else [str(i) for i in range(count)]
    if devices == "cpu" and torch.backends.mps.is_available():
        raise InputError("--devices cpu: cells take the accelerator of this machine (MPS); leave --devices out")
    if devices == "auto" and not names:
        return [{}]
    numbers = [str(i) for i in range(count)] if devices == "auto" else [part.strip() for part in devices.split(",")]
    if devices != "cpu" and not set(numbers) <= set(map(str, range(count))):
        have = f"the GPUs here are {', '.join(map(str, range(count)))}" if count else "there is no CUDA GPU here"
        raise InputError(f"--devices {devices}: {have}; give auto, cpu, or numbers of GPUs such as 0,1")
    return [{"CUDA_VISIBLE_DEVICES": "" if devices == "cpu" else names[int(number)]} for number in numbers]


def scores(cell: PlannedCell) -> str:
    """The main numbers of a finished cell; a dash where undefined."""
    path = cell.folder / "evaluation" / cell.split / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    names = {"cl_error": "Cl. error", "f1_plus": "F1+", "f1_minus": "F1-"}
    values = {name: metrics[key]["value"] for key, name in names.items()}
    return ", ".join(f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in values.items())
