"""Killed at any moment and resumed, a run ends in the same bits as one that was left in peace."""

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoloc.checkpoint import read_model_config
from histoloc.errors import InputError
from histoloc.train import train

# A process that has imported everything and trained nothing gives each trial a fresh process in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["histoloc.train", "tensorboard.summary.writer.event_file_writer"])
WEIGHTS = "model/model.safetensors"
SIGMA = {"sigma_start": 0.15, "sigma_step": 0.01, "sigma_cap": 0.3}


@pytest.fixture(scope="module")
def config(tiny):
    """Batch normalisation, dropout, momentum and sigma: all that has to be continued."""
    return tiny("maxmin", backbone="test_efficientnet", epochs=4, lr=0.02, options=SIGMA)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> Path:
    return train(config, tmp_path_factory.mktemp("undisturbed") / "run", progress=False)


def run_until(moment: Callable[[], bool], config, out: Path) -> bool:
    """Train in another process and kill it at the moment; whether it was still running then."""
    process = PROCESSES.Process(target=train, args=(config, out), kwargs={"resume": True, "progress": False})
    process.start()
    assert process.pid is not None
    while process.is_alive():
        if moment():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return process.exitcode == -signal.SIGKILL
    process.join()
    assert process.exitcode == 0
    return False


def assert_same(run: Path, expected: Path) -> None:
    assert (run / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    assert read_model_config(run).selection == read_model_config(expected).selection
    log, log_expected = (pd.read_csv(r / "log.csv").drop(columns=["seconds", "valid_seconds"]) for r in (run, expected))
    pd.testing.assert_frame_equal(log, log_expected, check_exact=True)


def first_change(file: Path) -> Callable[[], bool]:
    """The moment at which this file appears or is written anew."""

    def inode() -> int | None:
        return file.stat().st_ino if file.exists() else None

    before = inode()
    return lambda: inode() not in (before, None)


def test_killed_at_random_moments(config, undisturbed, tmp_path):
    out, rng, kills = tmp_path / "run", np.random.default_rng(0), 0
    for _ in range(6):
        # Counted from the moment training is under way, so that the kills fall into epochs and not into the start.
        began = first_change(out / "run.yaml")
        wait = rng.uniform(0.02, 0.4)
        started: list[float] = []

        def moment(began=began, started=started, wait=wait) -> bool:
            if not started and began():
                started.append(time.monotonic())
            return bool(started) and time.monotonic() - started[0] > wait

        kills += run_until(moment, config, out)
    assert kills >= 2, "the test needs to hit a running process"
    run_until(lambda: False, config, out)
    assert_same(out, undisturbed)


def test_killed_while_the_files_of_an_epoch_are_written(config, tmp_path):
    """Just after one file appears the next one is being written: weights, checksum, log, checkpoint."""
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, selection="last", epochs=6))
    out, kills = tmp_path / "run", 0
    for name in ("run.yaml", WEIGHTS, "model/config.json", "log.csv", "last.ckpt", WEIGHTS, "log.csv"):
        kills += run_until(first_change(out / name), config, out)
    assert kills >= 4, "the test needs to hit a running process"
    run_until(lambda: False, config, out)
    assert_same(out, train(config, tmp_path / "undisturbed", progress=False))


def test_what_a_killed_process_left_half_written_does_no_harm(config, undisturbed, tmp_path, tiny):
    out = tmp_path / "run"
    part = tiny("maxmin", backbone="test_efficientnet", epochs=1, lr=0.02, options=SIGMA)
    train(part, out, progress=False)
    for name in (".last.ckpt.part", ".log.1.part.csv", ".run.1.part.yaml", "model/.model.1.part.safetensors"):
        (out / name).write_bytes(b"half")
    train(config, out, resume=True, progress=False)
    assert_same(out, undisturbed)
    assert not (out / ".last.ckpt.part").exists()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no checkpoint at all"])
def test_a_damaged_checkpoint_is_named(tiny, tmp_path, damage):
    config = tiny("gap", epochs=1)
    train(config, tmp_path / "run", progress=False)
    checkpoint = tmp_path / "run" / "last.ckpt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(InputError, match=r"last\.ckpt: cannot be read .* remove it"):
        train(config, tmp_path / "run", resume=True, progress=False)
