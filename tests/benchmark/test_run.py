"""Cells in processes of their own: killed, failing, side by side, they end in what one undisturbed run gives."""

import dataclasses
import io
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import histoloc.benchmark.run as run_module
from histoloc.benchmark import progress
from histoloc.benchmark.cells import PlannedCell, plan
from histoloc.benchmark.presets import PRESETS, Choices
from histoloc.benchmark.progress import Track, Watch
from histoloc.benchmark.run import benchmark, worker_environments
from histoloc.config import write_run
from histoloc.errors import InputError
from histoloc.evaluation import evaluate
from histoloc.training import train
from killed import killed_at

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


def files(folder: Path) -> dict[str, int]:
    return {f.relative_to(folder).as_posix(): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def assert_same(cell: Path, expected: Path) -> None:
    assert (cell / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    result, wanted = (json.loads((run / "evaluation/test/metrics.json").read_text()) for run in (cell, expected))
    assert result["metrics"] == wanted["metrics"]


@contextmanager
def terminated(moment: Callable[[], bool]) -> Iterator[None]:
    """Send this process a SIGTERM at a moment within the block, from a thread."""
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.01):
            if moment():
                return os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
    file = io.StringIO()
    outcome = benchmark("table1", choices, file=file)
    (gap.folder / "last.ckpt").unlink()
    assert (outcome.finished, [cell for cell, _ in outcome.failed]) == (1, [gap])
    error = (gap.folder / "error.txt").read_text()
    assert error.count("\n") == 1
    assert "last.ckpt: cannot be read" in error
    assert outcome.failed[0][1] == error.strip()
    assert not (gap.folder / "cell.json").exists()
    message = file.getvalue()
    assert re.search(r"^\[.*\] allones, no fold, seed 0: done in [\d:]+, Cl\. error –, F1\+ \d", message, re.MULTILINE)
    assert re.search(r"^failed: gap, no fold, seed 0: .*last\.ckpt", message, re.MULTILINE)
    before, file = files(allones.folder), io.StringIO()
    outcome = benchmark("table1", choices, file=file)
    assert (outcome.finished, outcome.failed) == (2, ())
    assert outcome.report == choices.out / "report.html"
    assert files(allones.folder) == before
    assert "1 of 2 cells are finished already" in file.getvalue()
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


def test_a_killed_cell_goes_on_after_its_last_epoch(make, undisturbed, tmp_path, monkeypatch):
    """The call after the SIGKILL, here before the third checkpoint is complete, ends in the same bits."""
    choices = make(rows="gap")
    cell = plan("table1", choices)[0][0]
    with monkeypatch.context() as environment:
        environment.setenv("PYTHONPATH", killed_at(tmp_path, "/last.ckpt", 3)["PYTHONPATH"])
        outcome = benchmark("table1", choices, file=io.StringIO())
    assert outcome.finished == 0
    assert outcome.report is None
    assert "SIGKILL" in outcome.failed[0][1]
    assert "SIGKILL" in (cell.folder / "error.txt").read_text()
    killed = len(pd.read_csv(cell.folder / "log.csv"))
    assert killed == 3
    file = io.StringIO()
    assert benchmark("table1", choices, file=file).finished == 1
    assert f"gap, no fold, seed 0: started, goes on after epoch {killed}" in file.getvalue()
    assert_same(cell.folder, undisturbed)
    check_cost(json.loads((cell.folder / "cell.json").read_text()), cell)


def test_sigterm_ends_the_cells_and_keeps_what_is_finished(make):
    choices, file = make(rows="gap,lse,wildcat", workers=2, epochs=100_000), io.StringIO()
    first, second, third = plan("table1", choices)[0]

    def begun() -> bool:
        logs = [cell.folder / "cell.log" for cell in (first, second)]
        return all(log.exists() and "process" in log.read_text() for log in logs)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated(begun):
        benchmark("table1", choices, file=file)
    assert not any(alive(pid(cell)) for cell in (first, second))
    assert not third.folder.exists(), "the third cell is not begun"
    assert signal.getsignal(signal.SIGTERM) is before
    message = file.getvalue()
    assert "stopped: 0 of 3 cells are finished; the same command goes on" in message


# --- workers ---


def test_workers_share_cores_and_take_devices_in_turns(monkeypatch):
    monkeypatch.setattr(run_module.os, "sched_getaffinity", lambda process: range(8), raising=False)
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
    assert worker_environments("cpu", 2)[1]["OMP_NUM_THREADS"] == "3"
    with pytest.raises(InputError, match=r"--devices 3: the GPUs here are 0, 1, 2; give auto"):
        worker_environments("3", None)
    monkeypatch.setattr(run_module.torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible("auto", 2) == [None, None]
    with pytest.raises(InputError, match="there is no CUDA GPU here"):
        worker_environments("0", None)


# --- how long it will take ---


@pytest.fixture
def tracks(make) -> list[Track]:
    """allones; gap with seeds 0, 1; wildcat with seeds 0, 1: all waiting."""
    cells = plan("table1", make(rows="allones,gap,wildcat", seeds="0-1"))[0]
    return [Track(cell) for cell in cells if cell.row.name != "allones" or cell.seed == 0]


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Time that goes on when a test says so: clock.seconds += 1."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


def test_time_left_is_that_of_the_epochs_that_are_left(tracks, clock):
    def log(track: Track, epochs: int) -> None:
        track.cell.folder.mkdir(parents=True, exist_ok=True)
        rows = pd.DataFrame({"seconds": [2.0] * epochs, "valid_seconds": [0.0] * epochs})
        rows.to_csv(track.cell.folder / "log.csv", index=False)

    def left() -> str:
        watch.began = clock.seconds - 10
        watch.refresh()
        watch.started(gap)
        return file.getvalue().splitlines()[-1]

    allones, gap, *rest = tracks
    log(gap, 2)
    file = io.StringIO()
    watch = Watch(tracks, file)
    assert left().startswith("[0/5, 0:00:10 elapsed, about ? left] "), "epochs of an earlier call say nothing of this"
    steps = 1 + 4 * (EPOCHS + 1) - 2
    log(gap, 6)
    assert f", about {timedelta(seconds=round(10 * (steps - 4) / 4))} left]" in left()
    assert left().endswith("gap, no fold, seed 0: started, goes on after epoch 6")
    assert watch.bar.n == 6
    for track in (allones, *rest):
        watch.ended(track, "done", "")
    assert f"[4/5, 0:00:10 elapsed, about {timedelta(seconds=round(10 * 7 / (steps - 7)))} left]" in left()


def test_a_line_for_each_cell_and_a_bar(tracks, clock, capsys):
    file = io.StringIO()
    allones, gap0, gap1, *_ = tracks
    watch = Watch(tracks, file)
    for track in (allones, gap0, gap1):
        watch.started(track)
    clock.seconds += 3
    watch.ended(gap1, "failed", "no such file")
    watch.refresh()
    watch.bar.close()
    watch.ended(allones, "done", "F1+ 66.00")
    message = file.getvalue().splitlines()
    assert message[1] == "[0/5, 0:00:00 elapsed, about ? left] gap, no fold, seed 0: started"
    assert re.fullmatch(r"\[1/5, .* left\] gap, no fold, seed 1: failed in 0:00:03, no such file", message[3])
    assert re.fullmatch(r"\[2/5, .* left\] allones, no fold, seed 0: done in 0:00:03, F1\+ 66\.00", message[4])
    bar = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert f" 13/{1 + 4 * (EPOCHS + 1)} " in bar
    assert "allones, no fold, seed 0: 0/0; gap, no fold, seed 0: 0/12" in bar
