"""Kept apart, and importing little, because each process imports this file anew."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from histoloc.metrics import LocalizationMetrics


def collect(indices: range) -> LocalizationMetrics:
    metrics = LocalizationMetrics(["benign", "malignant"])
    for i in indices:
        random = np.random.default_rng(i)
        truth, roi, score = random.random((8, 9)) < 0.4, random.random((8, 9)), random.random()
        metrics.update(f"{i}.png", i % 2, [score, 1 - score], roi, roi >= 0.5, truth)
    return metrics


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    states: list = [None, None]
    dist.all_gather_object(states, collect(range(rank, 7, 2)).state())
    merged = collect(range(0))
    for state in states:
        merged.merge(state)
    Path(folder, f"{rank}.json").write_text(json.dumps(merged.compute(bootstrap=50).to_dict()))
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path):
    mp.spawn(process, args=(str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    expected = json.loads(json.dumps(collect(range(7)).compute(bootstrap=50).to_dict()))
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
