"""The training loop, to be read from top to bottom. The only file that imports Fabric."""

import dataclasses
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch.utils.data import DataLoader
from tqdm import tqdm

from histoloc.checkpoint import ModelConfig, Selection, Threshold, build_method, save_model
from histoloc.config import RunConfig, TrainingConfig, plain, read_run, write_run
from histoloc.data.dataset import EpochBatches, TrainSet, collate, seed_of
from histoloc.data.table import Table, read_table
from histoloc.errors import InputError
from histoloc.evaluate import measure, model_localizes
from histoloc.files import atomic_path
from histoloc.methods import Method
from histoloc.metrics.accumulate import LocalizationMetrics
from histoloc.predict import Predictor

# What may differ when a run is resumed: none of it changes the result.
_RESUMABLE = {"epochs", "workers", "cache_gb"}


@dataclass
class Progress:
    """Where training stands; everything that a checkpoint needs besides weights and optimizer.

    Attributes:
        epoch: number of finished epochs.
        rows: one row of the log per finished epoch.
        best: sort key of the selected epoch (larger is better), or None.
        best_weights: weights after that epoch.
    """

    epoch: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, ...] | None = None
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)


def train(config: RunConfig, out: Path, *, resume: bool = False, progress: bool = True) -> Path:
    """Train a method and leave a run folder.

    Args:
        config: everything the run depends on.
        out: the run folder: `run.yaml`, `log.csv`, `last.ckpt`, `model/`, `tensorboard/`.
        resume: go on from `last.ckpt` if there is one; the result has the same bits as an uninterrupted run.
        progress: show a bar.

    Returns:
        The run folder.

    Raises:
        InputError: the table, an option or the folder cannot be used; the loss is no longer finite.
    """
    table = read_table(config.data, fold=config.fold)
    _claim(out, config, resume)
    fabric = _fabric(config.training, out)
    fabric.launch()
    try:
        fit(fabric, config, table, out, progress=progress and fabric.is_global_zero)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return out


def fit(fabric: Fabric, config: RunConfig, table: Table, out: Path, *, progress: bool) -> None:
    """Build everything, train the epochs that are left, write the model folder."""
    training = config.training
    torch.manual_seed(seed_of(training.seed))
    described = describe(config, table)
    method = build_method(described, load_backbone=True)
    if method.supervision == "none":
        if fabric.is_global_zero:
            save_model(out / "model", method.state_dict(), described)
        return
    training_set = TrainSet(
        table,
        table.split("train"),
        config.input,
        training.seed,
        with_masks=method.supervision == "pixel",
        cache_bytes=int(training.cache_gb * 2**30),
        progress=progress,
    )
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
    if training.channels_last:
        method.to(memory_format=torch.channels_last)
    network = torch.compile(method) if training.compile else method
    network, optimizer = fabric.setup(network, make_optimizer(method, training))
    batches = EpochBatches(
        len(training_set), training.batch, training.seed, rank=fabric.global_rank, world=fabric.world_size
    )
    loader = DataLoader(
        training_set,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=(workers := _workers(training.workers)),
        persistent_workers=workers > 0,
        pin_memory=fabric.device.type == "cuda",
    )
    done = _restore(fabric, out, network, optimizer)
    bar = tqdm(
        total=training.epochs * len(batches),
        initial=done.epoch * len(batches),
        desc="training",
        disable=not progress,
    )
    with bar:
        for epoch in range(done.epoch, training.epochs):
            started = time.perf_counter()
            method.epoch.fill_(epoch)
            set_learning_rate(optimizer, training, epoch)
            batches.epoch = epoch
            row: dict[str, float] = {"epoch": epoch, "lr": learning_rate(training, epoch)}
            row |= train_epoch(fabric, network, method, optimizer, loader, batches, config, bar)
            trained = time.perf_counter()
            row |= validate(fabric, method, described, table, training)
            row |= {"seconds": trained - started, "valid_seconds": time.perf_counter() - trained}
            finish_epoch(fabric, out, network, optimizer, method, done, row, described, training, table)
            bar.set_postfix_str(_summary(row))


def train_epoch(
    fabric: Fabric,
    network: Any,
    method: Method,
    optimizer: torch.optim.Optimizer,
    loader: Iterable[Any],
    batches: EpochBatches,
    config: RunConfig,
    bar: Any,
) -> dict[str, float]:
    """One pass over the training split; returns the mean of every loss term."""
    network.train()
    epoch, sums, seen = batches.epoch, {}, 0.0
    for step, batch in enumerate(loader):
        batch = fabric.to_device(batch)
        if config.training.channels_last:
            batch = batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
        torch.manual_seed(seed_of(config.training.seed, epoch, step, fabric.global_rank))
        out = network(batch.image)
        terms = method.loss(out, batch, epoch)
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise InputError(
                f"the loss is no longer finite in epoch {epoch}, batch {step} ({', '.join(batch.names)}): "
                + ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
                + "; lower --lr, or look at these images"
            )
        weight = batches.weight(step)
        fabric.backward(total * weight)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in (terms | {"total": total}).items():
            sums[name] = sums.get(name, 0.0) + value.detach() * weight * len(batch.names)
        seen += weight * len(batch.names)
        bar.update()
        bar.set_postfix_str(" ".join(f"{name} {value.item():.3g}" for name, value in terms.items()), refresh=False)
    return {f"train/{name}": _mean(fabric, value, seen) for name, value in sums.items()}


def validate(
    fabric: Fabric, method: Method, described: ModelConfig, table: Table, training: TrainingConfig
) -> dict[str, float]:
    """Classification error and cross-entropy on the validation labels; mask metrics only where asked for."""
    samples = table.split("valid")
    with_masks = training.monitor == "masks" or training.selection == "pxap-masks"
    if not with_masks:
        samples = tuple(dataclasses.replace(sample, mask=None) for sample in samples)
    own = samples[fabric.global_rank :: fabric.world_size]
    predictor = Predictor(method, described, fabric.device)
    with fabric.autocast():
        part, _ = measure(model_localizes(predictor, threshold=0.5), table, own)
    metrics = LocalizationMetrics(table.classes)
    for state in _gather(fabric, part.state()):
        metrics.merge(state)
    result = metrics.compute(bootstrap=0)
    row: dict[str, float] = {}
    if method.classifies:
        state = metrics.state()
        truth = state["probabilities"][range(len(metrics)), state["label"]]
        row["valid/cross_entropy"] = float(-torch.tensor(truth).clamp_min(1e-12).log().mean())
    for name in ("cl_error", *(("f1_plus", "f1_minus", "pxap") if with_masks else ())):
        value = getattr(result, name).value
        if value is not None:
            row[f"valid/{name}"] = value
    return row


def finish_epoch(
    fabric: Fabric,
    out: Path,
    network: Any,
    optimizer: torch.optim.Optimizer,
    method: Method,
    done: Progress,
    row: dict[str, float],
    described: ModelConfig,
    training: TrainingConfig,
    table: Table,
) -> None:
    """Select, log, save: in this order, so that a kill at any moment loses at most the epoch."""
    key = selection_key(row, training)
    selected = done.best is None or key >= done.best
    if selected:
        done.best = key
        done.best_weights = {k: v.detach().cpu().clone() for k, v in method.state_dict().items()}
    done.epoch += 1
    done.rows.append(row | {"selected": float(selected)})
    if fabric.is_global_zero:
        if selected:
            save_model(out / "model", done.best_weights, _selected(described, row, training, table))
        with atomic_path(out / "log.csv") as temporary:
            pd.DataFrame(done.rows).to_csv(temporary, index=False)
    fabric.log_dict({k: v for k, v in row.items() if k != "epoch"}, step=int(row["epoch"]))
    state = {"network": network, "optimizer": optimizer, "progress": dataclasses.asdict(done)}
    # Every process must call save; only the first one writes.
    temporary = out / ".last.ckpt.part"
    fabric.save(temporary, state)
    if fabric.is_global_zero:
        temporary.replace(out / "last.ckpt")
    fabric.barrier()


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
    """SGD with Nesterov momentum; the heads may learn at another rate than the backbone."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        factor = 1.0 if ".model." in name else training.head_lr
        groups.setdefault(factor, []).append(parameter)
    return torch.optim.SGD(
        [{"params": p, "factor": factor} for factor, p in groups.items()],
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    )


def learning_rate(training: TrainingConfig, epoch: int) -> float:
    """The backbone's learning rate in epoch 0, 1, ..."""
    return max(training.lr * training.lr_factor ** (epoch // training.lr_every), training.lr_floor)


def set_learning_rate(optimizer: torch.optim.Optimizer, training: TrainingConfig, epoch: int) -> None:
    """Set each group's learning rate for the epoch."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training, epoch) * group["factor"]


def describe(config: RunConfig, table: Table) -> ModelConfig:
    """The configuration that the model folder will carry."""
    mpp = sorted({s.mpp for s in table.samples if s.mpp is not None})
    provenance = {
        "table": config.data.name,
        "fold": config.fold,
        "seed": config.training.seed,
        "recipe": config.recipe,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **{f"{package}": version(package) for package in ("histoloc", "torch", "timm")},
    }
    return ModelConfig(
        config.method,
        table.classes,
        config.options,
        config.backbone,
        config.input,
        mpp[len(mpp) // 2] if mpp else None,
        provenance=provenance,
    )


def _selected(described: ModelConfig, row: dict[str, float], training: TrainingConfig, table: Table) -> ModelConfig:
    masks = sum(s.mask is not None for s in table.split("valid")) if training.selection == "pxap-masks" else 0
    selection = Selection(training.selection, int(row["epoch"]), masks, masks > 0)
    threshold = Threshold("otsu", None) if training.threshold == "otsu" else Threshold()
    return dataclasses.replace(described, selection=selection, threshold=threshold)


def _claim(out: Path, config: RunConfig, resume: bool) -> None:
    """Make the run folder, or make sure that what is there may be continued."""
    earlier = out / "run.yaml"
    if not earlier.exists():
        write_run(earlier, config)
        return
    if not resume:
        raise InputError(f"{out}: holds a run already; add --resume to go on with it, or choose another --out")
    before, now = _flat(plain(read_run(earlier))), _flat(plain(config))
    differing = [k for k in now if before.get(k) != now[k] and k.rsplit(".", 1)[-1] not in _RESUMABLE]
    if differing:
        said = ", ".join(f"{k} was {before.get(k)} and is {now[k]}" for k in differing)
        raise InputError(f"{out}: cannot be resumed with other settings ({said}); restore them or choose another --out")
    write_run(earlier, config)


def _fabric(training: TrainingConfig, out: Path) -> Fabric:
    cuda = training.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    precision: Any = training.precision
    if precision == "auto":
        precision = "bf16-mixed" if cuda and torch.cuda.is_bf16_supported() else "32-true"
    devices: Any = int(training.devices) if training.devices.isdigit() else training.devices
    if devices == "auto" and not cuda:
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    try:
        return Fabric(
            accelerator=training.accelerator,
            devices=devices,
            num_nodes=training.nodes,
            precision=precision,
            loggers=TensorBoardLogger(root_dir=out, name="tensorboard", version=""),
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--accelerator {training.accelerator} --devices {training.devices}: not usable here ({error}); "
            "try --accelerator cpu --devices 1"
        ) from error


def _restore(fabric: Fabric, out: Path, network: Any, optimizer: torch.optim.Optimizer) -> Progress:
    path = out / "last.ckpt"
    if not path.exists():
        return Progress()
    state: dict[str, Any] = {"network": network, "optimizer": optimizer}
    try:
        rest = fabric.load(path, state)
    except (RuntimeError, EOFError, KeyError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove it to train from the start") from error
    return Progress(**rest["progress"])


def _workers(asked: int) -> int:
    cores = os.cpu_count() or 1
    return asked if asked >= 0 else (0 if cores <= 2 else min(4, cores - 1))


def _mean(fabric: Fabric, value: torch.Tensor, seen: float) -> float:
    return float(fabric.all_reduce(value / seen, reduce_op="mean"))


def _gather(fabric: Fabric, part: Any) -> list[Any]:
    if fabric.world_size == 1:
        return [part]
    parts: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(parts, part)
    return parts


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _summary(row: dict[str, float]) -> str:
    shown = {k.split("/")[1]: v for k, v in row.items() if k.startswith("valid/")}
    return "valid " + " ".join(f"{k} {v:.3g}" for k, v in shown.items() if not math.isnan(v))
