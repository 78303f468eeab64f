"""The training loop, to be read from top to bottom. The only file that imports Fabric."""

import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import pandas as pd
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.utilities.rank_zero import rank_zero_only
from timm.layers.norm_act import convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm

from histoloc.checkpoint import ModelConfig, Selection, Threshold, build_method, save_model
from histoloc.config import RunConfig, TrainingConfig, write_run
from histoloc.data.dataset import EpochBatches, TrainSet, collate, seed_of
from histoloc.data.table import Table, read_table
from histoloc.errors import InputError
from histoloc.evaluate import measure, model_localizes
from histoloc.files import atomic_path
from histoloc.methods import Method
from histoloc.metrics.accumulate import LocalizationMetrics
from histoloc.optimizer import learning_rate, make_optimizer, set_learning_rate
from histoloc.predict import Predictor
from histoloc.run_folder import check_claim
from histoloc.select import check_splits, choose_threshold, number_of_masks, selection_key


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
    check_splits(config, table)
    check_claim(out, config, resume)
    fabric = _fabric(config.training, out)
    fabric.launch()
    try:
        fit(fabric, config, table, out, progress=progress and fabric.is_global_zero)
        if fabric.is_global_zero and config.training.threshold == "valid":
            choose_threshold(out / "model", table, fabric.device)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return out


def is_first_process() -> bool:
    """Whether this process is the one that writes: always, unless training was started on several processes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def fit(fabric: Fabric, config: RunConfig, table: Table, out: Path, *, progress: bool) -> None:
    """Build everything, train the epochs that are left, write the model folder."""
    training = config.training
    torch.manual_seed(seed_of(training.seed))
    described = describe(config, table)
    method = build_method(described, load_backbone=True)
    if method.supervision == "none":
        if fabric.is_global_zero and not (out / "model" / "config.json").is_file():
            write_run(out / "run.yaml", config)
            save_model(out / "model", method.state_dict(), described)
        return
    loader, batches = _loader(fabric, config, table, with_masks=method.supervision == "pixel", progress=progress)
    method = _share_statistics(fabric, method)
    if training.channels_last:
        # Only what is learned: DDP cannot broadcast a lone buffer of this memory format.
        for parameter in method.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    network: Any = torch.compile(method) if training.compile else method
    network, optimizer = fabric.setup(network, make_optimizer(method, training))
    done = _restore(fabric, out, network, optimizer)
    if fabric.is_global_zero:
        # Not before everything could be built: a run that never started must not stand in the way of the next.
        write_run(out / "run.yaml", config)
    total, initial = training.epochs * len(batches), done.epoch * len(batches)
    with tqdm(total=total, initial=initial, desc="training", disable=not progress) as bar:
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
    for step, batch in enumerate(_loaded(loader)):
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
        # Weighted by the global batch, so that the mean over processes is the mean over samples.
        size = min(batches.batch, batches.count - step * batches.batch)
        for name, value in (terms | {"total": total}).items():
            sums[name] = sums.get(name, 0.0) + value.detach() * (weight * size)
        seen += size
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
        empty_class = getattr(described.options, "empty_class", None) if with_masks else None
        part, _ = measure(model_localizes(predictor, threshold=0.5), table, own, empty_class=empty_class)
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
    _save_checkpoint(fabric, out / "last.ckpt", network, optimizer, done)


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
        # "valid" is chosen after the last epoch.
        Threshold("otsu", None) if config.training.threshold == "otsu" else Threshold(),
        provenance=provenance,
    )


def _selected(described: ModelConfig, row: dict[str, float], training: TrainingConfig, table: Table) -> ModelConfig:
    masks = number_of_masks(table) if training.selection == "pxap-masks" else 0
    selection = Selection(training.selection, int(row["epoch"]), masks, masks > 0)
    return dataclasses.replace(described, selection=selection)


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


def _loader(
    fabric: Fabric, config: RunConfig, table: Table, *, with_masks: bool, progress: bool
) -> tuple[Iterable[Any], EpochBatches]:
    training = config.training
    samples = TrainSet(
        table,
        table.split("train"),
        config.input,
        training.seed,
        with_masks=with_masks,
        cache_bytes=int(training.cache_gb * 2**30),
        progress=progress,
    )
    batches = EpochBatches(
        len(samples), training.batch, training.seed, rank=fabric.global_rank, world=fabric.world_size
    )
    workers = _workers(training.workers)
    loader = DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=fabric.device.type == "cuda",
    )
    return loader, batches


def _loaded(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches; what is wrong with a file is said as if it had been read in this process."""
    try:
        yield from loader
    except InputError as error:
        # A worker of the loader puts its traceback before the sentence.
        raise InputError(str(error).strip().rsplit("InputError: ", 1)[-1]) from error


def _share_statistics(fabric: Fabric, method: Method) -> Method:
    """Batch normalisation over the global batch where the backend can."""
    if fabric.world_size == 1 or not any(isinstance(m, _BatchNorm) for m in method.modules()):
        return method
    if fabric.device.type == "cuda":
        # timm's conversion keeps the activation that its layers hold; torch's would drop it.
        return cast(Method, convert_sync_batchnorm(method))
    if fabric.is_global_zero:
        tqdm.write(
            "warning: on several CPU processes batch normalisation takes its statistics from each process's share of "
            "the batch, so results differ from those of one process",
            file=sys.stderr,
        )
    return method


def _save_checkpoint(
    fabric: Fabric, path: Path, network: Any, optimizer: torch.optim.Optimizer, done: Progress
) -> None:
    state = {"network": network, "optimizer": optimizer, "progress": dataclasses.asdict(done)}
    temporary = path.with_name(f".{path.name}.part")
    try:
        # Every process must call save; only the first one writes.
        fabric.save(temporary, state)
        if fabric.is_global_zero:
            temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); make room, then --resume") from error
    fabric.barrier()


def _restore(fabric: Fabric, out: Path, network: Any, optimizer: torch.optim.Optimizer) -> Progress:
    path = out / "last.ckpt"
    if not path.exists():
        return Progress()
    state: dict[str, Any] = {"network": network, "optimizer": optimizer}
    try:
        rest = fabric.load(path, state)
        return Progress(**rest["progress"])
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read ({reason}); remove it to train from the start") from error


def _workers(asked: int) -> int:
    cores = os.cpu_count() or 1
    return asked if asked >= 0 else (0 if cores <= 2 else min(4, cores - 1))


def _mean(fabric: Fabric, value: torch.Tensor, seen: float) -> float:
    return float(cast(torch.Tensor, fabric.all_reduce(value / seen, reduce_op="mean")))


def _gather(fabric: Fabric, part: Any) -> list[Any]:
    if fabric.world_size == 1:
        return [part]
    parts: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(parts, part)
    return parts


def _summary(row: dict[str, float]) -> str:
    shown = {k.split("/")[1]: v for k, v in row.items() if k.startswith("valid/")}
    return "valid " + " ".join(f"{k} {v:.3g}" for k, v in shown.items() if not math.isnan(v))
