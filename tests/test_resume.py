"""Killed at any moment and resumed, a run ends in the same bits as one that was left in peace: on a CPU, in float32."""

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
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from histoloc.errors import InputError
from histoloc.model_folder import read_model_config
from histoloc.training import train
from histoloc.training_state import Progress, restore, save_checkpoint

# A process that has imported everything and trained nothing gives each trial a fresh process in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["histoloc.training", "tensorboard.summary.writer.event_file_writer"])
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


def scaled(steps: int) -> tuple[Fabric, MixedPrecision]:
    """16-mixed after so many steps on a CPU, where Fabric alone would take bf16; the scale doubles every second one."""
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2))
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision])
    network = torch.nn.Linear(2, 1)
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters()))
    for _ in range(steps):
        fabric.backward(model(torch.ones(1, 2)).sum())
        optimizer.step()
        optimizer.zero_grad()
    return fabric, precision


def test_the_scale_of_16_bit_gradients_is_continued(tmp_path):
    """Fabric does not save it by itself: a resumed run began again with the first scale."""
    fabric, precision = scaled(steps=5)
    assert precision.state_dict()["scale"] == 1024
    save_checkpoint(fabric, tmp_path, {}, Progress(epoch=1))
    again, fresh = scaled(steps=0)
    done, saved = restore(again, tmp_path, epochs=2)
    assert (done.epoch, saved) == (1, {})
    assert fresh.state_dict() == precision.state_dict()
    assert fresh.state_dict()["_growth_tracker"] == 1


def test_a_checkpoint_without_the_scale_is_read(tmp_path):
    fabric, _ = scaled(steps=0)
    fabric.save(tmp_path / "last.ckpt", {"progress": dataclasses.asdict(Progress(epoch=1))})
    assert restore(fabric, tmp_path, epochs=2)[0].epoch == 1
