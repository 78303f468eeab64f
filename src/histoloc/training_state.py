"""Where a training stands: optimizer, epochs and which is selected; on disk, what `--resume` goes on from."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from histoloc.config import TrainingConfig
from histoloc.errors import InputError
from histoloc.methods import Method
from histoloc.work_folder import first_alone

RISE = 0.3  # share of all steps in which the rate of one-cycle rises


@dataclass
class Progress:
    """Where training stands; everything that a checkpoint needs besides weights and optimizer.

    Attributes:
        stage: the stage that is being trained; most methods have one.
        epoch: number of its finished epochs.
        rows: one row of the log per finished epoch, of all stages.
        best: sort key of the stage's selected epoch (larger is better), or None.
        best_weights: weights after that epoch.
    """

    stage: int = 0
    epoch: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, ...] | None = None
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)


def selection_key(row: dict[str, float], training: TrainingConfig) -> tuple[float, ...]:
    """Sort key of an epoch: the largest is selected, the latest of equal ones."""
    error = row.get("valid/cl_error", 0.0)
    keys: dict[str, tuple[float, ...]] = {
        "error-loss": (-error, -row.get("valid/cross_entropy", 0.0)),
        "error-latest": (-error,),
        "last": (),
        "pxap-masks": (row.get("valid/pxap", 0.0),),
    }
    return keys[training.selection]


def make_optimizer(method: Method, training: TrainingConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; the heads may learn at another rate than the backbone."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(1.0 if ".model." in name else training.head_lr, []).append(parameter)
    learned = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(learned, lr=training.lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        learned,
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    )


def learning_rate(training: TrainingConfig, epoch: int, step: int = 0, steps: int = 1) -> float:
    """The backbone's learning rate in step 0, 1, ... of the `steps` of an epoch 0, 1, ...

    It is a function of these alone, so that resuming needs nothing else. One cycle is torch's OneCycleLR.
    """
    if training.schedule == "step":
        return max(training.lr * training.lr_factor ** (epoch // training.lr_every), training.lr_floor)
    whole = training.epochs * steps
    first, top, last = training.lr / 25, training.lr, training.lr / 25e4
    at, turn, end = epoch * steps + step, max(RISE * whole - 1, 0.0), whole - 1
    if at <= turn:
        begin, goal, share = first, top, at / max(turn, 1)
    else:
        begin, goal, share = top, last, (at - turn) / (end - turn)
    return goal + (begin - goal) / 2 * (1 + math.cos(math.pi * share))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, training: TrainingConfig, epoch: int, step: int = 0, steps: int = 1
) -> float:
    """Set each group's learning rate; returns the backbone's."""
    rate = learning_rate(training, epoch, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def save_checkpoint(fabric: Any, out: Path, state: dict[str, Any], progress: Progress) -> None:
    """Write `last.ckpt`; every process must call this, and the first one writes.

    Raises:
        InputError: it cannot be written.
    """
    path = out / "last.ckpt"
    temporary = path.with_name(f".{path.name}.part")
    try:
        # Every process must call save; only the first one writes.
        # The precision's state is the scale of the gradients of 16-mixed, which Fabric does not save by itself.
        precision = fabric.strategy.precision.state_dict()
        fabric.save(temporary, {**state, "precision": precision, "progress": dataclasses.asdict(progress)})
        if fabric.is_global_zero:
            temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); make room, then --resume") from error
    fabric.barrier()


def restore(fabric: Any, out: Path, epochs: int) -> tuple[Progress, dict[str, Any]]:
    """Where an earlier call stopped, and the weights and optimizer state of that moment; every process must call this.

    The first process alone reads `last.ckpt` and sends it to the others: on another machine they may see another
    folder, or none, and would go on from another state.

    Raises:
        InputError: `last.ckpt` cannot be read or used.
    """
    path = out / "last.ckpt"

    def read() -> tuple[Progress, dict[str, Any]]:
        if not path.exists():
            return Progress(), {}
        with readable(path):
            saved = fabric.strategy.load_checkpoint(path)  # not fabric.load, which waits for the other processes
            progress = Progress(**saved.pop("progress"))
        if progress.stage and len(progress.rows) != progress.stage * epochs + progress.epoch:
            raise InputError(f"{path}: --epochs cannot change between two stages; restore it, or choose another --out")
        return progress, saved

    progress, saved = fabric.broadcast(first_alone(fabric, read))
    if scaling := saved.pop("precision", None):  # histoloc 0.1 did not save it
        with readable(path):
            fabric.strategy.precision.load_state_dict(scaling)
    return progress, saved


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a damaged checkpoint raises into one sentence."""
    try:
        yield
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read ({reason}); remove it to train from the start") from error
