"""Killed at any moment and resumed, a run ends in the same bits as one that was left in peace: on a CPU, in float32."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor

from histoloc.errors import InputError
from histoloc.methods.maxmin import MaxMin
from histoloc.model_folder import read_model_config
from histoloc.training import train
from histoloc.training_state import Progress, restore, save_checkpoint
from histoloc.types import Batch, Output

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


def killed_at_batch(config, out: Path, number: int) -> None:
    """Go on, and get SIGKILL in the batch of this number, counted in this process."""
    batches, loss = itertools.count(1), MaxMin.loss

    def counted(self: MaxMin, output: Output, batch: Batch, epoch: int) -> dict[str, Tensor]:
        if next(batches) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(self, output, batch, epoch)

    MaxMin.loss = counted
    train(config, out, resume=True, progress=False)


def killed_at_file(config, out: Path, number: int) -> None:
    """Go on, and get SIGKILL when the file of this number, counted in this process, would get its name."""
    files = itertools.count(1)

    def hook(event: str, arguments: Any) -> None:
        if event == "os.rename" and next(files) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    train(config, out, resume=True, progress=False)


def kill(how: Callable[..., None], config, out: Path, numbers: Iterable[int]) -> None:
    """Begin again for each number, in a process of its own, and be killed."""
    for number in numbers:
        process = PROCESSES.Process(target=how, args=(config, out, number))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL


def assert_same(run: Path, expected: Path) -> None:
    assert (run / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    assert read_model_config(run).selection == read_model_config(expected).selection
    log, log_expected = (pd.read_csv(r / "log.csv").drop(columns=["seconds", "valid_seconds"]) for r in (run, expected))
    pd.testing.assert_frame_equal(log, log_expected, check_exact=True)


def test_killed_in_any_batch(config, undisturbed, tmp_path):
    """Of the three of an epoch, also twice in one epoch."""
    out = tmp_path / "run"
    kill(killed_at_batch, config, out, (2, 6, 1, 4))
    assert len(pd.read_csv(out / "log.csv")) == 2
    train(config, out, resume=True, progress=False)
    assert_same(out, undisturbed)


def test_killed_while_the_files_of_an_epoch_are_written(config, tmp_path):
    """Settings, weights, log and checkpoint: one of them has its name already, and the next one does not."""
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, selection="last", epochs=6))
    out = tmp_path / "run"
    kill(killed_at_file, config, out, range(1, 9))
    train(config, out, resume=True, progress=False)
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
