"""One cell, in a process of its own: train or go on, evaluate, write cell.json last.

`python -m histoloc.benchmark.cell FOLDER` does what `request.yaml` in the folder says.
"""

import os
import platform
import shutil
import sys
import threading
import time
import traceback
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from histoloc.benchmark.cells import REQUEST_FILE, epochs_logged
from histoloc.benchmark.results import CELL_FILE, ERROR_FILE
from histoloc.config import read_yaml, run_config
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.evaluation import run_evaluation
from histoloc.model_folder import load_model
from histoloc.options import EvaluationOptions
from histoloc.training import train
from histoloc.work_folder import check_inputs, inputs_of, locked, write_json, write_text

WATCH = "--until-stdin-closes"


def run_cell(folder: Path) -> None:
    """Train, or go on with training, and evaluate, as the folder's request says; leave `cell.json`.

    Raises:
        InputError: the request, the table or the run that is there cannot be used, or the table has changed since the
            benchmark began.
    """
    with locked(folder):
        _run(folder)


def _run(folder: Path) -> None:
    request = read_yaml(folder / REQUEST_FILE)
    config = run_config(request["run"], where=str(folder / REQUEST_FILE))
    print(f"{request['row']}, fold {request['fold']}, seed {request['seed']}: process {os.getpid()}", flush=True)
    check_inputs(folder, request["inputs"], inputs_of(read_table(config.data, check_files=False)))
    train(config, folder, resume=True, progress=False)
    epochs, seconds = epochs_logged(folder)
    print(f"trained: {epochs} epochs, {seconds:.1f} s", flush=True)
    started = time.perf_counter()
    own = folder / "evaluation" / request["split"]
    shutil.rmtree(own, ignore_errors=True)  # of a call that was stopped
    asked = EvaluationOptions(
        split=request["split"], fold=config.fold, maps=request["maps"], empty_class=request.get("empty_class")
    )
    result = run_evaluation(folder, config.data, asked, out=own, progress=False)
    evaluated = time.perf_counter() - started
    print("\n".join(result.lines), flush=True)
    method, described = load_model(folder)
    cost = {
        "train_seconds": round(seconds, 3),
        "evaluate_seconds": round(evaluated, 3),
        **_memory(),
        "epochs": epochs,
        "selected_epoch": described.selection.epoch,
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("histoloc", "torch", "timm")},
    }
    identity = {name: request[name] for name in ("row", "fold", "seed", "split")}
    write_json(folder / CELL_FILE, {**identity, "method": config.method, **cost})


def main(arguments: list[str]) -> int:
    """Run the cell of a folder; what goes wrong stands in its `error.txt`, in one sentence."""
    folder = Path(arguments[0])
    if WATCH in arguments:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_cell(folder)
    except InputError as error:
        return _failed(folder, str(error))
    except Exception as error:
        traceback.print_exc()
        return _failed(folder, f"{type(error).__name__}: {error}")
    return 0


def _failed(folder: Path, message: str) -> int:
    sentence = " ".join(message.split())
    print(sentence, file=sys.stderr, flush=True)
    write_text(folder / ERROR_FILE, sentence + "\n")
    return 1


def _end_with_parent() -> None:
    """The parent holds the other end of the standard input, so that its death, of whatever kind, ends this process."""
    # Not sys.stdin: the lock of its buffer would be held when the interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(1)


def _memory() -> dict[str, Any]:
    """Peak of this process, and of the GPU where one was used, in MiB; None where unknown."""
    peak = None
    if find_spec("resource") is not None:  # not on Windows
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
    gpu = round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else None
    return {"peak_memory_mb": peak, "peak_gpu_memory_mb": gpu}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
