"""Two processes train what one trains: the real command line, gloo on the CPU."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from histoloc.checkpoint import build_method
from histoloc.data.dataset import EpochBatches
from histoloc.data.table import read_table
from histoloc.provenance import describe
from histoloc.train import _share_statistics, train

# 12 images in batches of 11: shares of 6 and 5, and a last batch of one image for two processes.
OPTIONS = {"batch": 11, "lr": 0.02}


@pytest.fixture(scope="module")
def one_process(tiny, tmp_path_factory):
    # Dropout draws in every process for its own images, so it is left out of the comparison.
    config = tiny("maxmin", options={"dropout": 0.0}, **OPTIONS)
    return train(config, tmp_path_factory.mktemp("one") / "run", progress=False)


def start(command: list[str], flags: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, "train", "maxmin", *flags],
        capture_output=True, text=True, timeout=180, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def assert_same_training(run, other):
    logs = [pd.read_csv(r / "log.csv").drop(columns=["seconds", "valid_seconds"]) for r in (run, other)]
    assert list(logs[0]) == list(logs[1])
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-5, atol=1e-5)
    for name, value in load_file(run / "model" / "model.safetensors").items():
        torch.testing.assert_close(value, load_file(other / "model" / "model.safetensors")[name], rtol=1e-4, atol=1e-5)


def test_the_devices_option_starts_two_processes_with_the_losses_of_one(one_process, tiny_flags, tmp_path):
    flags = tiny_flags(out=tmp_path / "run", dropout=0, devices=2, **OPTIONS)
    done = start([sys.executable, "-m", "histoloc.cli"], flags)
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr
    assert_same_training(tmp_path / "run", one_process)
    assert done.stdout.count("validation:") == 1, "only the first process evaluates and reports"
    assert (tmp_path / "run" / "report.html").is_file()
    assert "warning" not in done.stderr
    again = start([sys.executable, "-m", "histoloc.cli"], flags)
    assert again.returncode == 2
    assert again.stderr.count("folder already contains a run") == 1, "the other process stops without a word"
    assert "Traceback" not in again.stderr


@pytest.mark.slow
def test_torchrun_starts_the_same(one_process, tiny_flags, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "histoloc.cli"]
    done = start(command, tiny_flags(out=tmp_path / "run", dropout=0, **OPTIONS))
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "run", one_process)


def as_fabric(world: int, device: str) -> Any:
    return SimpleNamespace(world_size=world, device=torch.device(device), is_global_zero=True)


@pytest.fixture
def normalised(tiny):
    config = tiny("gap", backbone="test_efficientnet")
    torch.manual_seed(0)
    return build_method(describe(config, read_table(config.data))[0], load_backbone=True).eval()


@pytest.mark.parametrize(("world", "expected"), [(1, ""), (2, "warning: on several CPU processes")])
def test_batch_normalisation_per_process_is_said_aloud(normalised, capsys, world, expected):
    assert _share_statistics(as_fabric(world, "cpu"), normalised) is normalised
    said = capsys.readouterr().err
    assert said.startswith(expected)
    assert said.count("\n") == (1 if expected else 0)


def test_shared_batch_normalisation_is_the_same_network(normalised):
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, keys = normalised(image).logits, list(normalised.state_dict())
    shared = cast(nn.Module, _share_statistics(as_fabric(2, "cuda"), normalised)).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in shared.modules())
    assert list(shared.state_dict()) == keys
    torch.testing.assert_close(shared(image).logits, before)


@pytest.mark.parametrize(("count", "batch", "world"), [(12, 11, 2), (7, 4, 2), (9, 4, 3), (5, 8, 4), (1, 1, 3)])
def test_the_processes_take_the_global_batches_apart(count, batch, world):
    """Every process makes the same number of steps, and the mean over processes is the mean over the batch."""
    value = np.random.default_rng(0).random(count)
    whole = [[key.index for key in keys] for keys in EpochBatches(count, batch, seed=0)]
    assert sorted(i for keys in whole for i in keys) == list(range(count))
    parts = [EpochBatches(count, batch, seed=0, rank=rank, world=world) for rank in range(world)]
    shares = [list(part) for part in parts]
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch_of in enumerate(whole):
        weighed = [
            part.weight(step) * value[[k.index for k in share[step]]].mean()
            for part, share in zip(parts, shares, strict=True)
        ]
        assert np.mean(weighed) == pytest.approx(value[batch_of].mean())
        seen = [k.index for p, s in zip(parts, shares, strict=True) if p.weight(step) for k in s[step]]
        assert sorted(seen) == sorted(batch_of)
