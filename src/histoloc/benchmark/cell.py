"""One cell, in a process of its own: train or go on, evaluate, write cell.json last."""

import os
import platform
import shutil
import time
from importlib.metadata import version

import torch

from histoloc.benchmark.cells import PlannedCell, epochs_logged
from histoloc.benchmark.results import CELL_FILE
from histoloc.data.table import read_table
from histoloc.evaluation import run_evaluation
from histoloc.model_folder import load_model
from histoloc.options import EvaluationOptions
from histoloc.prior import AdaptOptions, adapt
from histoloc.progress import peak_memory
from histoloc.training import train
from histoloc.work_folder import check_inputs, inputs_of, locked, write_json


def run_cell(cell: PlannedCell) -> None:
    """Train, or go on with training, and evaluate; leave `cell.json`.

    Raises:
        InputError: the table or the run that is there cannot be used, another call is at this cell, or the table has
            changed since the benchmark began.
    """
    folder, config = cell.folder, cell.config
    with locked(folder):
        cell.prepare()
        print(f"{cell.label}: process {os.getpid()}")
        check_inputs(folder, cell.inputs, inputs_of(read_table(config.data, columns=config.columns, check_files=False)))
        _learn(cell)
        epochs, seconds = epochs_logged(cell.run)
        print(f"trained: {epochs} epochs, {seconds:.1f} s")
        started = time.perf_counter()
        own = folder / "evaluation" / cell.split
        shutil.rmtree(own, ignore_errors=True)  # of a call that was stopped
        options = EvaluationOptions(
            split=cell.split,
            fold=config.fold,
            columns=config.columns,
            maps=cell.maps,
            empty_class=config.empty_class,
        )
        result = run_evaluation(cell.model, config.data, options, out=own, progress=False)
        evaluated = time.perf_counter() - started
        print("\n".join(result.lines))
        method, described = load_model(cell.model)
        gpu = torch.cuda.is_available()
        record = {name: cell.request[name] for name in ("row", "fold", "seed", "split")} | {
            "method": described.method,
            "train_seconds": round(seconds, 3),
            "evaluate_seconds": round(evaluated, 3),
            "peak_memory_mb": round(peak_memory() / 2**20, 1),
            "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1) if gpu else None,
            "epochs": epochs,
            "selected_epoch": described.selection.epoch,
            "parameters": sum(parameter.numel() for parameter in method.parameters()),
            "device": torch.cuda.get_device_name() if gpu else "cpu",
            "versions": {"python": platform.python_version()} | {n: version(n) for n in ("histoloc", "torch", "timm")},
        }
        write_json(folder / CELL_FILE, record)


def _learn(cell: PlannedCell) -> None:
    """Train, or adapt a prior; nothing where it is measured as it is."""
    config, training = cell.config, cell.config.training
    if cell.row.prior == "adapted":
        options = AdaptOptions(
            fold=config.fold,
            columns=config.columns,
            seed=training.seed,
            epochs=training.epochs,
            drawn=config.drawn,
            resume=True,
        )
        adapt(str(config.prior), config.data, cell.folder, options, progress=False)
    elif cell.row.prior != "alone":
        train(config, cell.folder, resume=True, progress=False)
