"""Machines as people have them: schedulers, little shared memory, code pages, logs, Ctrl-C, killed processes."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import histoloc
from histoloc import progress, training, work_folder
from histoloc.cli.main import main
from histoloc.data import trainset
from histoloc.data.table import read_table
from histoloc.data.trainset import EpochBatches, Key, TrainSet, make_loader
from histoloc.data.transforms import InputConfig
from histoloc.errors import InputError
from histoloc.slide_cohort import predict_slides

SCHEDULER = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "histoloc", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip


# --- schedulers ---


@pytest.fixture
def variables(monkeypatch):
    def put(**values: str) -> None:
        for name, value in (SCHEDULER | values).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)

    return put


def processes_of(tiny, tmp_path, **changes) -> tuple[int, bool]:
    fabric = training._fabric(tiny("gap", **changes).training, tmp_path)
    return fabric.world_size, training.processes.launched_elsewhere(fabric)


@pytest.mark.parametrize("devices", ["auto", "1"])
def test_a_batch_script_with_four_tasks_runs_one_process(tiny, tmp_path, variables, devices):
    """`sbatch --ntasks=4` sets the variables of all tasks, and starts one."""
    variables()
    assert processes_of(tiny, tmp_path, devices=devices) == (1, False)


def test_a_batch_script_may_start_processes_of_its_own(tiny, tmp_path, variables):
    variables()
    assert processes_of(tiny, tmp_path, devices="2") == (2, False)


@pytest.mark.parametrize("devices", ["auto", "4"])
def test_srun_starts_the_processes_of_one_training(tiny, tmp_path, variables, devices):
    variables(SLURM_STEP_NUM_TASKS="4", SLURM_STEP_NUM_NODES="1")
    assert processes_of(tiny, tmp_path, devices=devices) == (4, True)


def test_other_devices_than_srun_started_are_refused(tiny, tmp_path, variables):
    variables(SLURM_STEP_NUM_TASKS="4")
    with pytest.raises(InputError, match=r"--devices 1: srun or torchrun started 4 .* give --devices 4, or let"):
        processes_of(tiny, tmp_path, devices="1")


def test_a_stray_rank_does_not_make_several_processes(tiny, tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert processes_of(tiny, tmp_path)[0] == 1


# --- workers ---


@pytest.fixture
def samples(tiny_table):
    table = read_table(tiny_table)
    return TrainSet(table, table.split("train"), InputConfig(small_side=64, crop=64), 0)


@pytest.mark.parametrize(("free", "workers"), [(64 << 20, 2), (100_000, 0)])
def test_little_shared_memory_is_said_and_done_without_workers(samples, tmp_path, monkeypatch, capsys, free, workers):
    monkeypatch.setattr(trainset, "SHARED", tmp_path)
    monkeypatch.setattr(trainset.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    loader = make_loader(samples, EpochBatches(12, 4, 0), 2, pin_memory=False)
    assert loader.num_workers == workers
    said = capsys.readouterr().err
    assert ("prepared without workers" in said and "--shm-size" in said) == (workers == 0)


@pytest.mark.parametrize("text", ["DataLoader worker (pid 3) is killed by signal: Bus error.", "in worker: no space"])
def test_a_worker_that_dies_is_one_sentence(text):
    def dies():
        yield 1
        raise RuntimeError(text)

    batches = trainset.loaded(dies())
    assert next(batches) == 1
    with pytest.raises(InputError, match="go on with --resume --workers 0"):
        next(batches)


def test_other_errors_of_a_loader_keep_their_traceback():
    def fails():
        raise RuntimeError("a bug")
        yield

    with pytest.raises(RuntimeError, match="a bug"):
        list(trainset.loaded(fails()))


def test_samples_travel_without_open_files(samples):
    """By spawn and forkserver; each shared tensor would be an open file."""
    samples.targets = [torch.zeros(1, 64, 96, dtype=torch.uint8) for _ in range(12)]
    copied = pickle.loads(torch.multiprocessing.reducer.ForkingPickler.dumps(samples))  # pyright: ignore
    assert not any(tensor.is_shared() for tensor, _ in copied.cache)
    for index in range(12):
        torch.testing.assert_close(copied[Key(1, index)].image, samples[Key(1, index)].image)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are not forked")
def test_workers_are_forked_whatever_is_the_default(samples):
    loader = make_loader(samples, EpochBatches(12, 4, 0), 1, pin_memory=False)
    context = loader.multiprocessing_context
    assert context is not None
    assert context.get_start_method() == "fork"


# --- code pages and logs ---


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1251"])
def test_what_a_code_page_lacks_is_no_error(encoding, monkeypatch, gap_run, tiny_table, tmp_path):
    pages = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, page in pages.items():
        monkeypatch.setattr(sys, name, page)
    image = next((tiny_table.parent / "images").iterdir())
    main(["predict", str(gap_run), str(image), "--out", str(tmp_path), "--scales", "0.5", "1", "--device", "cpu"])
    pages["stderr"].flush()
    assert (tmp_path / "predictions.csv").is_file()


class Log(io.StringIO):
    """A file that is no terminal."""


def test_a_log_gets_a_line_seldom(monkeypatch):
    log, now = Log(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Bar(total=1000, desc="training", file=log) as bar:
        for step in range(1000):
            now[0] += 0.1
            bar.update()
            bar.set_postfix_str(f"loss {step}")
            if step % 100 == 0:
                bar.write("note", file=log)
    lines = log.getvalue().splitlines()
    assert lines.count("note") == 10
    assert 3 <= len(lines) - 10 <= 4, "one each half minute, and the last"
    assert "1000/1000" in lines[-1]
    assert "?" not in log.getvalue().replace("?it/s", "")
    assert "\r" not in log.getvalue()


def test_a_short_loop_is_one_line_in_a_log_and_an_empty_one_none():
    log = Log()
    list(progress.Bar(range(5), file=log))
    assert len(log.getvalue().splitlines()) == 1
    list(progress.Bar(range(5), file=log, leave=False))
    list(progress.Bar([], file=log))
    assert len(log.getvalue().splitlines()) == 1


# --- Ctrl-C and --resume ---


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tiny_flags, tmp_path, monkeypatch, capsys):
    finish, done = training.finish_epoch, []

    def interrupted(*arguments):
        finish(*arguments)
        done.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "finish_epoch", interrupted)
    out = tmp_path / "run"
    with pytest.raises(SystemExit, match="130"):
        main(["train", "gap", *tiny_flags(out=out, lr=0.02)])
    go_on = f"complete epochs are kept; go on by histoloc train gap --out {out} --resume"
    assert capsys.readouterr().err.splitlines()[-1] == f"histoloc: interrupted; {go_on}"
    monkeypatch.undo()
    main(["train", "gap", "--out", str(out), "--resume"])  # what it said, without any other option
    run = yaml.safe_load((out / "run.yaml").read_text())
    assert run["training"]["lr"] == 0.02
    assert len((out / "log.csv").read_text().splitlines()) == 3


def test_a_resumed_run_takes_flags_and_refuses_others(tiny_flags, tmp_path, capsys):
    out = tmp_path / "run"
    main(["train", "gap", *tiny_flags(out=out, epochs=1), "--recipe", "glas-gap"])
    main(["train", "gap", "--out", str(out), "--resume", "--epochs", "2"])
    assert len((out / "log.csv").read_text().splitlines()) == 3
    assert yaml.safe_load((out / "run.yaml").read_text())["recipe"] == "glas-gap"
    for flags, says in ((("--lr", "0.5"), "training.lr was 0.01 and is 0.5"), (("--recipe", "glas-sem"), "maxmin")):
        with pytest.raises(SystemExit, match="2"):
            main(["train", "gap", "--out", str(out), "--resume", *flags])
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["train", "maxmin", "--out", str(out), "--resume"])
    assert "is for gap, not maxmin; use histoloc train gap" in capsys.readouterr().err


def test_the_package_is_a_command():
    run = subprocess.run([sys.executable, "-m", "histoloc", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == histoloc.__version__


# --- lists ---


def test_a_list_of_problems_is_printed_as_a_list(scene, capsys):
    rows = scene.rows()
    rows["split"] = "trian"
    with pytest.raises(SystemExit, match="2"):
        main(scene.train(data=scene.write(rows)))
    lines = capsys.readouterr().err.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("histoloc: "))
    assert lines[first].endswith(f"{len(rows)} problems:")
    assert len(lines) - first - 1 == 20
    assert all(line.startswith("  line ") and "did you mean 'train'?" in line for line in lines[first + 1 :])


@pytest.mark.parametrize("flag", ["--empty-mean", "--empty-std", "--empty-teachers", "--empty-scales"])
def test_no_flag_empties_a_list(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "prior", "--data", "t.csv", "--out", "out", flag])
    assert f"Unknown option: {flag}" in capsys.readouterr().err.replace('"', "")


# --- paths in Python ---


def test_texts_are_paths(gap_run, tiny_table, tiny, tmp_path):
    image = str(next((tiny_table.parent / "images").iterdir()))
    table = histoloc.predict(str(gap_run), image, str(tmp_path / "one"), progress=False, device="cpu")
    several = histoloc.predict(str(gap_run), [image], str(tmp_path / "list"), progress=False, device="cpu")
    assert len(table) == len(several) == 1
    metrics = histoloc.evaluate(str(gap_run), str(tiny_table), out=str(tmp_path / "e"), progress=False, device="cpu")
    assert metrics.images == 4
    config = histoloc.run_config({"method": "stain", "data": str(tiny_table)}, "here")
    config = type(config)("stain", str(tiny_table))  # pyright: ignore[reportArgumentType]
    assert histoloc.train(config, str(tmp_path / "run"), progress=False) == tmp_path / "run"
    with pytest.raises(InputError, match=r"absent\.svs: no such slide"):
        predict_slides(str(gap_run), str(tmp_path / "absent.svs"), str(tmp_path / "s"), mpp=1.0, device="cpu")


# --- parts of killed processes ---


def test_parts_of_killed_processes_go_and_others_stay(tmp_path):
    host = work_folder._HOST
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    gone = [f".map.{host}-{dead.stdout.strip()}.part.tif", ".old.other-1.part.json", ".older.77.part.json"]
    stay = [f".map.{host}-{os.getpid()}.part.tif", ".new.other-1.part.json", ".mine.partial", "a.1.part", ".x.part.png"]
    for name in (*gone, *stay):
        (tmp_path / name).write_text("x")
        if name.startswith((".old", ".mine", "a", ".x")):
            os.utime(tmp_path / name, (0, time.time() - 3 * 86_400))
    work_folder.write_text(tmp_path / "report.html", "page")
    assert {path.name for path in tmp_path.iterdir()} == {*stay, "report.html"}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_what_a_killed_process_was_writing_goes_with_the_next_call(tmp_path):
    script = (
        "import sys, os, signal; from pathlib import Path; from histoloc.work_folder import atomic_path\n"
        f"with atomic_path(Path({str(tmp_path / 'table.csv')!r})) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    source = str(Path(histoloc.__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", script], check=False, env={**os.environ, "PYTHONPATH": source})
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".csv"]
    work_folder.write_text(tmp_path / "other.csv", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other.csv"]
