"""Cells in processes of their own: killed, failing, side by side, they end in what one undisturbed run gives."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import histoloc.benchmark.run as run_module
from histoloc.benchmark.cells import PlannedCell, plan
from histoloc.benchmark.presets import PRESETS, Choices
from histoloc.benchmark.progress import Lines, Screen, Track, clock, seconds_left
from histoloc.benchmark.rows import TABLE1
from histoloc.benchmark.run import benchmark, worker_environments
from histoloc.config import write_run
from histoloc.errors import InputError
from histoloc.evaluation import evaluate
from histoloc.training import train

EPOCHS = 12
WEIGHTS = "model/model.safetensors"
TINY = {
    "input": {"small_side": 64, "crop": 64},
    "training": {"epochs": EPOCHS, "batch": 4, "lr": 1e-2, "selection": "last", "precision": "32-true"},
}


@pytest.fixture(scope="module", autouse=True)
def preset() -> Iterator[None]:
    """The preset `fast` at a size for tests; the report, which has tests of its own, only as a stand-in."""
    report = pytest.MonkeyPatch()
    report.setitem(PRESETS, "fast", TINY)
    import histoloc.benchmark.report as module

    report.setattr(module, "write_benchmark_report", lambda bench: bench / "report.html")
    yield
    report.undo()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A table of its own, because a test damages one of its images."""
    from histoloc.datasets.synthetic.dataset import synthetic_table

    return synthetic_table(out=tmp_path_factory.mktemp("images"), count=20, height=64, width=96).table


@pytest.fixture(scope="module")
def make(data, tmp_path_factory) -> Callable[..., Choices]:
    """A benchmark of the tiny backbone in a folder of its own."""

    def choices(**changes) -> Choices:
        out = tmp_path_factory.mktemp("benches") / "bench"
        tiny = {"backbone": "test_efficientnet_ln", "stride": 0, "weights": "none", "devices": "cpu", "maps": 2}
        return Choices(data, out, preset="fast", **{**tiny, **changes})

    return choices


@pytest.fixture(scope="module")
def undisturbed(make, tmp_path_factory) -> Path:
    """What the GAP cell must end in: trained and evaluated here, in one go."""
    config = plan("table1", make(rows="gap"))[0][0].config
    training = dataclasses.replace(config.training, accelerator="cpu")
    out = train(dataclasses.replace(config, training=training), tmp_path_factory.mktemp("once") / "gap", progress=False)
    evaluate(out, config.data, split="test", maps=2, device="cpu")
    return out


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def files(folder: Path) -> dict[str, int]:
    return {f.relative_to(folder).as_posix(): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def assert_same(cell: Path, expected: Path) -> None:
    assert (cell / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    found, wanted = (json.loads((run / "evaluation/test/metrics.json").read_text()) for run in (cell, expected))
    assert found["metrics"] == wanted["metrics"]


def when(moment: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Do something at a moment, from a thread."""

    def wait() -> None:
        for _ in range(20_000):
            if moment():
                return action()
            time.sleep(0.002)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def pid(cell: PlannedCell) -> int:
    return int(re.findall(r"process (\d+)", (cell.folder / "cell.log").read_text())[-1])


def alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


# --- cells ---


def test_two_workers_a_failing_cell_and_a_second_call(make, undisturbed):
    """One cell has a damaged checkpoint; the other one does not care, and stays as it is in the second call."""
    choices = make(rows="gap,allones", workers=2)
    allones, gap = plan("table1", choices)[0]
    write_run(gap.folder / "run.yaml", gap.config)
    (gap.folder / "last.ckpt").write_bytes(b"damaged")
    console = quiet()
    outcome = benchmark("table1", choices, console=console)
    (gap.folder / "last.ckpt").unlink()
    assert (outcome.finished, [cell for cell, _ in outcome.failed]) == (1, [gap])
    error = (gap.folder / "error.txt").read_text()
    assert error.count("\n") == 1
    assert "last.ckpt: cannot be read" in error
    assert outcome.failed[0][1] == error.strip()
    assert not (gap.folder / "cell.json").exists()
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert re.search(r"^\[.*\] allones, no fold, seed 0: done in 0:00:\d\d, Cl\. error –, F1\+ \d", said, re.MULTILINE)
    assert re.search(r"^failed: gap, no fold, seed 0: .*last\.ckpt", said, re.MULTILINE)
    before, console = files(allones.folder), quiet()
    outcome = benchmark("table1", choices, console=console)
    assert (outcome.finished, outcome.failed) == (2, ())
    assert outcome.report == choices.out / "report.html"
    assert files(allones.folder) == before
    assert "1 of 2 cells are finished already" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert not (gap.folder / "error.txt").exists()
    assert_same(gap.folder, undisturbed)
    check_cost(json.loads((gap.folder / "cell.json").read_text()), gap)
    assert json.loads((allones.folder / "cell.json").read_text())["epochs"] == 0


def check_cost(cost: dict, cell: PlannedCell) -> None:
    identity = {"row": "gap", "method": "gap", "fold": None, "seed": 0, "split": "test"}
    assert {name: cost[name] for name in identity} == identity
    log = pd.read_csv(cell.folder / "log.csv")
    assert cost["train_seconds"] == pytest.approx(log["seconds"].sum() + log["valid_seconds"].sum(), abs=1e-3)
    assert (cost["epochs"], cost["selected_epoch"], cost["device"]) == (EPOCHS, EPOCHS - 1, "cpu")
    assert cost["evaluate_seconds"] > 0
    assert 50 < cost["peak_memory_mb"] < 20_000
    assert cost["parameters"] > 10_000
    assert {"python", "histoloc", "torch"} <= set(cost["versions"])


def test_a_killed_cell_goes_on_after_its_last_epoch(make, undisturbed):
    """The call after the SIGKILL ends in the same bits."""
    choices = make(rows="gap")
    cell = plan("table1", choices)[0][0]
    checkpoint, log = cell.folder / "last.ckpt", cell.folder / "log.csv"
    thread = when(checkpoint.exists, lambda: os.kill(pid(cell), signal.SIGKILL))
    outcome = benchmark("table1", choices, console=quiet())
    thread.join()
    assert outcome.finished == 0
    assert outcome.report is None
    assert "SIGKILL" in outcome.failed[0][1]
    assert "SIGKILL" in (cell.folder / "error.txt").read_text()
    killed = len(pd.read_csv(log)) if log.exists() else 0
    assert 1 <= killed < EPOCHS
    assert benchmark("table1", choices, console=quiet()).finished == 1
    assert_same(cell.folder, undisturbed)
    check_cost(json.loads((cell.folder / "cell.json").read_text()), cell)


def test_sigterm_ends_the_cells_and_keeps_what_is_finished(make, monkeypatch):
    processes, console = [], quiet()

    def start(*arguments):
        processes.append(run_start(*arguments))
        return processes[-1]

    run_start = run_module.start
    monkeypatch.setattr(run_module, "start", start)
    stop = when(lambda: len(processes) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        benchmark("table1", make(rows="gap,lse,wildcat", workers=2), console=console)
    stop.join()
    assert len(processes) == 2, "the third cell is not begun"
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) is before
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "stopped: 0 of 3 cells are finished; the same command goes on" in said


PARENT = """
import subprocess, sys, time
p = subprocess.Popen([*sys.argv[1:]], stdin=subprocess.PIPE, start_new_session=True)
print(p.pid, flush=True)
time.sleep(60)
"""


def test_no_cell_outlives_its_parent(tmp_path):
    """The watch alone, in a process that imports next to nothing."""
    child = (
        "import ast, os, threading, time\n"
        "from pathlib import Path\n"
        f"tree = ast.parse(Path({str(Path(run_module.__file__).with_name('cell.py'))!r}).read_text())\n"
        "watch = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == '_end_with_parent']\n"
        "exec(compile(ast.Module(watch, []), 'watch', 'exec'))\n"
        "threading.Thread(target=_end_with_parent, daemon=True).start()\n"
        "time.sleep(60)\n"
    )
    arguments = [sys.executable, "-c", PARENT, sys.executable, "-c", child]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    time.sleep(0.3)
    assert alive(orphan)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not alive(orphan):
            break
        time.sleep(0.05)
    assert not alive(orphan)


# --- workers ---


def test_workers_share_cores_and_take_devices_in_turns(monkeypatch):
    monkeypatch.setattr(run_module, "cores", lambda: 8)
    monkeypatch.setattr(run_module.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(run_module.torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def visible(devices: str, workers: int | None) -> list[str | None]:
        return [e.get("CUDA_VISIBLE_DEVICES") for e in worker_environments(devices, workers)]

    assert visible("auto", None) == ["0", "1", "2"]
    assert visible("0,2", 3) == ["0", "2", "0"]
    assert visible("cpu", None) == [""]
    assert [e["OMP_NUM_THREADS"] for e in worker_environments("auto", 3)] == ["2"] * 3
    assert worker_environments("cpu", 16)[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert visible("2", None) == ["7"]
    assert visible("auto", 2) == ["4", "5"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in worker_environments("cpu", 2)[1]
    with pytest.raises(InputError, match=r"--devices 3: the GPUs here are 0, 1, 2; give auto"):
        worker_environments("3", None)
    monkeypatch.setattr(run_module.torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible("auto", 2) == [None, None]
    with pytest.raises(InputError, match="there is no CUDA GPU here"):
        worker_environments("0", None)
    with pytest.raises(InputError, match="--workers 0 must be at least 1"):
        worker_environments("auto", 0)


# --- how long it will take ---


@pytest.fixture
def tracks(make) -> list[Track]:
    """allones; gap with seeds 0, 1; wildcat with seeds 0, 1: all waiting."""
    cells = plan("table1", make(rows="allones,gap,wildcat", seeds="0-1"))[0]
    return [Track(cell) for cell in cells if cell.row.name != "allones" or cell.seed == 0]


def test_time_left_comes_from_measured_epochs(tracks):
    allones, gap0, gap1, wildcat0, wildcat1 = tracks
    assert seconds_left(tracks, 1) is None
    gap0.state, gap0.logged, gap0.seconds = "running", 3, 6.0  # 2 s an epoch
    assert seconds_left(tracks, 1) == pytest.approx(2 * (EPOCHS - 3) + 2 * EPOCHS + 2 * 2 * EPOCHS)
    wildcat0.state, wildcat0.logged, wildcat0.seconds = "running", 1, 5.0
    left = 2 * (EPOCHS - 3) + 2 * EPOCHS + 5 * (EPOCHS - 1) + 5 * EPOCHS
    assert seconds_left(tracks, 1) == pytest.approx(left)
    assert seconds_left(tracks, 2) == pytest.approx(left / 2)
    # Start and evaluation of an ended cell took 4 s; three cells have not begun.
    allones.state, allones.started, allones.ended = "done", 10.0, 14.0
    assert seconds_left(tracks, 1) == pytest.approx(left + 2 * 4)
    for track in tracks:
        track.state = "done"
    wildcat1.state, wildcat1.started = "running", time.monotonic()
    assert seconds_left(tracks, 8) == pytest.approx(5 * EPOCHS)  # one cell, so one worker
    wildcat1.state = "failed"
    assert seconds_left(tracks, 2) == 0
    assert gap1.share == 1


def test_clock():
    assert [clock(s) for s in (None, 0, 59.6, 3725)] == ["?", "0:00:00", "0:01:00", "1:02:05"]


def test_lines_and_picture(tracks):
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    allones, gap0, gap1, *_ = tracks
    lines = Lines(console, tracks, 2)
    gap0.state, gap0.logged, gap0.seconds, gap0.started = "running", 3, 6.0, time.monotonic()
    lines.started(gap0)
    allones.state, allones.said, allones.started, allones.ended = "done", "F1+ 66.00", 1.0, 4.0
    gap1.state, gap1.said, gap1.started, gap1.ended = "failed", "no such file", 1.0, 2.0
    lines.ended(allones)
    said = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert re.fullmatch(
        r"\[0/5, 0:00:0\d elapsed, about 0:00:45 left\] gap, no fold, seed 0: started, goes on after epoch 3", said[0]
    )
    assert re.fullmatch(r"\[2/5, .* left\] allones, no fold, seed 0: done in 0:00:03, F1\+ 66\.00", said[1])
    with console.capture() as captured:
        console.print(Screen(console, tracks, 2).picture())
    picture = captured.get()
    assert re.fullmatch(r"2/5, .* left *", picture.splitlines()[0])
    assert re.fullmatch(r"━+╸? *", picture.splitlines()[1].replace("╺", "━"))
    assert re.search(r"running +gap, no fold, seed 0 +epoch 3/12 +2\.0 s per epoch", picture)
    assert re.search(r"done +allones, no fold, seed 0 +0:00:03 +F1\+ 66\.00", picture)
    assert re.search(r"failed +gap, no fold, seed 1 +0:00:01 +no such file", picture)
    assert {row.name for row in TABLE1} >= {track.cell.row.name for track in tracks}
