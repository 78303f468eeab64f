"""Two processes train what one trains: the real command line, gloo on the CPU."""

import json
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

from histoloc.config import TrainingConfig
from histoloc.data.table import read_table
from histoloc.data.trainset import EpochBatches
from histoloc.errors import InputError
from histoloc.model_folder import build_method
from histoloc.processes import cache_bytes, check_batch, check_machines, share_statistics
from histoloc.training import describe, train
from histoloc.training_state import Progress, restore

# 12 images in batches of 10: shares of 5, and a last batch of one image for each of two processes.
OPTIONS = {"batch": 10, "lr": 0.02}


@pytest.fixture(scope="module")
def one_process(tiny, tmp_path_factory):
    # Dropout draws in every process for its own images, so it is left out of the comparison.
    config = tiny("maxmin", options={"dropout": 0.0}, **OPTIONS)
    return train(config, tmp_path_factory.mktemp("one") / "run", progress=False)


def start(command: list[str], flags: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, "train", "maxmin", *flags],
        capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def assert_same_training(run, other):
    logs = [pd.read_csv(r / "log.csv").drop(columns=["seconds", "valid_seconds"]) for r in (run, other)]
    assert list(logs[0]) == list(logs[1])
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-5, atol=1e-5)
    for name, value in load_file(run / "model" / "model.safetensors").items():
        torch.testing.assert_close(value, load_file(other / "model" / "model.safetensors")[name], rtol=1e-4, atol=1e-5)


def test_the_devices_option_starts_two_processes_with_the_losses_of_one(one_process, tiny_flags, tmp_path):
    """Also where they go on from a checkpoint."""
    flags = tiny_flags(out=tmp_path / "run", dropout=0, devices=2, **OPTIONS)
    part = tiny_flags(out=tmp_path / "run", dropout=0, devices=2, epochs=1, **OPTIONS)
    first = start([sys.executable, "-m", "histoloc.cli.main"], part)
    assert first.returncode == 0, first.stderr
    done = start([sys.executable, "-m", "histoloc.cli.main"], [*flags, "--resume"])
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "inputs.json").read_text())["computed_on"]
    assert record == {"accelerator": "cpu", "precision": "32-true", "processes": 2}
    assert "Starting with 2 processes" in done.stderr
    assert_same_training(tmp_path / "run", one_process)
    assert done.stdout.count("validation:") == 1, "only the first process evaluates and reports"
    assert (tmp_path / "run" / "report.html").is_file()
    assert "warning" not in done.stderr
    again = start([sys.executable, "-m", "histoloc.cli.main"], flags)
    assert again.returncode == 2
    assert again.stderr.count("folder already contains a run") == 1, "the other process stops without a word"
    assert "Traceback" not in again.stderr


@pytest.mark.slow
def test_torchrun_starts_the_same(one_process, tiny_flags, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "histoloc.cli.main"]
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
    assert share_statistics(as_fabric(world, "cpu"), normalised) is normalised
    output = capsys.readouterr().err
    assert output.startswith(expected)
    assert output.count("\n") == (1 if expected else 0)


def test_shared_batch_normalisation_is_the_same_network(normalised):
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, keys = normalised(image).logits, list(normalised.state_dict())
    shared = cast(nn.Module, share_statistics(as_fabric(2, "cuda"), normalised)).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in shared.modules())
    assert list(shared.state_dict()) == keys
    torch.testing.assert_close(shared(image).logits, before)


@pytest.mark.parametrize(
    ("count", "batch", "world", "sizes"),
    [
        (12, 11, 2, [12]),
        (13, 11, 2, [11, 2]),
        (7, 4, 2, [4, 3]),
        (9, 4, 3, [4, 5]),
        (5, 8, 4, [5]),
        (9, 4, 4, [4, 5]),
        (8, 4, 4, [4, 4]),
        (9, 4, 1, [4, 4, 1]),
        (1, 1, 1, [1]),
    ],
)
def test_the_processes_take_the_global_batches_apart(count, batch, world, sizes):
    """Every image once, one at least for each process and step, and the mean over processes is that over the batch."""
    value = np.random.default_rng(0).random(count)
    order = [key.index for keys in EpochBatches(count, batch, seed=0) for key in keys]
    assert sorted(order) == list(range(count))
    parts = [EpochBatches(count, batch, seed=0, rank=rank, world=world) for rank in range(world)]
    shares = [[[key.index for key in keys] for keys in part] for part in parts]
    assert {len(part) for part in parts} == {len(share) for share in shares} == {len(sizes)}
    for step, size in enumerate(sizes):
        mine, order = order[:size], order[size:]
        weighed = [p.weight(step) * value[s[step]].mean() for p, s in zip(parts, shares, strict=True)]
        assert np.mean(weighed) == pytest.approx(value[mine].mean())
        assert sorted(index for share in shares for index in share[step]) == sorted(mine)
        assert {part.size(step) for part in parts} == {size}
    assert order == []


@pytest.mark.parametrize(
    ("count", "batch", "world", "message"),
    [
        (12, 4, 8, r"--batch 4 for 8 processes: .*; give --batch 8 or more, or fewer --devices"),
        (3, 8, 4, r"the training split has 3 images for 4 processes.*; give fewer --devices"),
    ],
)
def test_no_process_may_go_without_an_image(count, batch, world, message):
    with pytest.raises(InputError, match=message):
        EpochBatches(count, batch, seed=0, world=world)


def test_a_batch_smaller_than_the_processes_is_refused_before_they_start(tiny_flags, tmp_path):
    done = start([sys.executable, "-m", "histoloc.cli.main"], tiny_flags(out=tmp_path / "run", batch=1, devices=2))
    assert done.returncode == 2
    assert done.stderr == (
        "histoloc: --batch 1 for 2 processes: each of them needs an image of its own in every step; give --batch 2 or "
        "more, or fewer --devices\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_batch_smaller_than_the_processes_of_torchrun_is_refused_once(tiny_flags, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "histoloc.cli.main"]
    done = start(command, tiny_flags(out=tmp_path / "run", batch=1))
    assert done.returncode != 0
    assert done.stderr.count("--batch 1 for 2 processes") == 1
    assert not (tmp_path / "run").exists()


def test_what_learns_nothing_needs_no_batch(tiny):
    config = tiny("allones", batch=1)
    check_batch(SimpleNamespace(world_size=8), config, read_table(config.data))


# --- machines ---


@pytest.mark.parametrize(("world", "nodes", "share"), [(1, 1, 4), (8, 1, 0.5), (8, 2, 1)])
def test_the_cache_is_of_the_machine(world, nodes, share):
    assert cache_bytes(SimpleNamespace(world_size=world), TrainingConfig(nodes=nodes)) == share * 2**30


@pytest.fixture
def other_machine(monkeypatch):
    """Two machines of one process each; the other one has this fingerprint."""

    def make(fingerprint: str) -> None:
        monkeypatch.setattr("histoloc.processes.gather", lambda fabric, part: [part, fingerprint])

    return make


@pytest.mark.parametrize(("first", "ends"), [(True, InputError), (False, SystemExit)])
def test_machines_with_other_images_do_not_train_together(tiny, other_machine, first, ends):
    config = tiny("gap", nodes=2)
    table, fabric = read_table(config.data), SimpleNamespace(local_rank=0, is_global_zero=first)
    other_machine(table.fingerprint())
    check_machines(fabric, config.training, table)
    other_machine("another")
    with pytest.raises(
        ends, match=r"table\.csv: has another content on one of the 2 machines.*share" if first else "2"
    ):
        check_machines(fabric, config.training, table)


class FirstOf:
    """As Fabric has the processes: the first one, whose words another one hears."""

    def __init__(self, *heard: Any) -> None:
        self.is_global_zero, self.heard, self.said = not heard, list(heard), []
        self.strategy = SimpleNamespace(
            precision=SimpleNamespace(load_state_dict=self.said.append),
            load_checkpoint=lambda path: torch.load(path, weights_only=True),
        )

    def broadcast(self, obj: Any) -> Any:
        if not self.is_global_zero:
            return self.heard.pop(0)
        self.said.append(obj)
        return obj


def test_another_machine_goes_on_from_the_checkpoint_of_the_first(tmp_path):
    """Each process read `last.ckpt` of its own folder, and its own optimizer went on with it."""
    for name, epoch in (("first", 3), ("other", 1)):
        (tmp_path / name).mkdir()
        saved = {
            "progress": {"epoch": epoch},
            "optimizer": {"rate": torch.tensor(epoch)},
            "precision": {"scale": epoch},
        }
        torch.save(saved, tmp_path / name / "last.ckpt")
    first = FirstOf()
    done, saved = restore(first, tmp_path / "first", epochs=4)
    assert (done.epoch, saved["optimizer"]) == (3, {"rate": torch.tensor(3)})
    assert first.said[-1] == {"scale": 3}
    (tmp_path / "other" / "none").mkdir()
    for folder in (tmp_path / "other", tmp_path / "other" / "none"):
        other = FirstOf(False, (Progress(epoch=3), {"optimizer": {"rate": torch.tensor(3)}, "precision": {"scale": 3}}))
        assert restore(other, folder, epochs=4) == (done, {"optimizer": {"rate": torch.tensor(3)}})
        assert other.said == [{"scale": 3}]


def test_a_checkpoint_that_the_first_process_cannot_read_is_named_once(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"last\.ckpt: cannot be read"):
        restore(FirstOf(), tmp_path, epochs=4)
    with pytest.raises(SystemExit) as stopped:
        restore(FirstOf(True), tmp_path, epochs=4)
    assert stopped.value.code == 2
