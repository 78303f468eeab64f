"""The training loop, to be read from top to bottom. The only file that imports Fabric."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from tqdm import tqdm

from histoloc import processes
from histoloc.calibration import calibrate
from histoloc.config import RunConfig, TrainingConfig, read_run, write_run
from histoloc.data.table import Table, read_table
from histoloc.data.trainset import EpochBatches, TrainSet, loaded, make_loader, seed_of
from histoloc.errors import InputError
from histoloc.measurement import measure, model_localizes
from histoloc.methods import Method
from histoloc.metrics.accumulate import LocalizationMetrics
from histoloc.model_folder import ModelConfig, Selection, build_method, save_images, save_model
from histoloc.options import MapOptions
from histoloc.prediction import Predictor
from histoloc.progress import Bar
from histoloc.target_maps import stage_targets
from histoloc.teachers import images_behind, teacher_inputs
from histoloc.training_setup import (
    begin_with_prior,
    check_splits,
    describe,
    drawn_inputs,
    settings,
    training_set,
)
from histoloc.training_state import (
    Progress,
    make_optimizer,
    readable,
    restore,
    save_checkpoint,
    selection_key,
    set_learning_rate,
)
from histoloc.work_folder import INPUTS_FILE, RUN_FILE, atomic_path, check_run, first_alone, locked, write_json


@dataclass(frozen=True)
class Job:
    """What stays the same from the first epoch to the last."""

    fabric: Fabric
    config: RunConfig
    table: Table
    out: Path
    described: ModelConfig
    method: Method
    samples: TrainSet
    batches: EpochBatches


def train(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    progress: bool = True,
    then: Callable[[], None] | None = None,
) -> Path:
    """Train a method and leave a run folder.

    Args:
        config: everything the run depends on.
        out: the run folder: docs/runs.md says what it holds.
        resume: go on from `last.ckpt` if there is one, to the same bits on a CPU in float32 (docs/runs.md).
        progress: show a bar.
        then: called at the end, in the locked folder, by the first process alone.

    Returns:
        The run folder.

    Raises:
        InputError: table, option or folder cannot be used, another run is there, or the loss is no longer finite.
    """
    out = Path(out)
    table = read_table(config.data, fold=config.fold, columns=config.columns)
    check_splits(config, table)
    fabric = _fabric(config.training, out)
    if not processes.launched_elsewhere(fabric):
        processes.check_batch(fabric, config, table)
    fabric.launch()
    with ExitStack() as lock, _resumable(config, out):

        def claim() -> dict[str, Any]:
            processes.check_batch(fabric, config, table)
            lock.enter_context(locked(out))
            earlier, now = lambda: settings(read_run(out / RUN_FILE)), settings(config)
            inputs = check_run(out, now, earlier, table, processes.computed_on(fabric), resume=resume)
            return inputs | drawn_inputs(config, out) | teacher_inputs(config, out)

        try:
            inputs = first_alone(fabric, claim)
            fit(fabric, config, table, out, inputs, progress=progress and fabric.is_global_zero)
            if fabric.is_global_zero:
                _complete(out / "model", config, table, fabric.device, progress)
        finally:
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
        if then is not None and fabric.is_global_zero:
            then()
    return out


@contextmanager
def _resumable(config: RunConfig, out: Path) -> Iterator[None]:
    """Let Ctrl-C say how a run that has begun goes on."""
    try:
        yield
    except KeyboardInterrupt:
        remedy = f"complete epochs are kept; go on by histoloc train {config.method} --out {out} --resume"
        raise KeyboardInterrupt(remedy if (out / RUN_FILE).exists() else "") from None


def fit(
    fabric: Fabric, config: RunConfig, table: Table, out: Path, inputs: dict[str, Any] | None, *, progress: bool
) -> None:
    """Build everything, train the stages and epochs that are left, write the model folder."""
    training = config.training
    processes.check_machines(fabric, training, table)
    torch.manual_seed(seed_of(training.seed))
    described, notes = describe(config, table)
    method = build_method(described, load_backbone=True)
    if config.prior is not None:
        notes = (*notes, *begin_with_prior(method, described, config.prior))
    method.calibration(training.range)  # refuses a range that the method does not have
    if fabric.is_global_zero:
        if described.classes:  # the table's are about labels
            notes = (*table.notes, *notes)
        for line in (table.summary(), *(f"note: {note}" for note in notes)):
            tqdm.write(line, file=sys.stderr)
    if not method.supervision:
        if fabric.is_global_zero:
            _begin(out, config, inputs)
            if not (out / "model" / "config.json").is_file():
                save_model(out / "model", method.state_dict(), described)
        return
    samples = training_set(config, described, table, processes.cache_bytes(fabric, training), progress=progress)
    rank, world = fabric.global_rank, fabric.world_size
    batches = EpochBatches(len(samples), training.batch, training.seed, rank=rank, world=world)
    method = processes.share_statistics(fabric, method)
    if training.channels_last:
        # Only what is learned: DDP cannot broadcast a lone buffer of this memory format.
        for parameter in method.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    job = Job(fabric, config, table, out, described, method, samples, batches)
    point, saved = restore(job.fabric, out, training.epochs)
    if fabric.is_global_zero:
        # Not before everything could be built: a run that never started must not stand in the way of the next.
        _begin(out, config, inputs)
    total = method.stages * training.epochs * len(batches)
    with Bar(total=total, initial=len(point.rows) * len(batches), desc="training", disable=not progress) as bar:
        more = True
        while more:
            train_stage(job, point, saved, bar)
            more, saved = finish_stage(job, point), {}


def train_stage(job: Job, progress: Progress, saved: dict[str, Any], bar: Any) -> None:
    """The epochs of the stage that are left; after each of them everything is on disk."""
    method, training = job.method, job.config.training
    with readable(job.out / "last.ckpt"):
        method.load_state_dict(saved.get("network", method.state_dict()))
    # After the weights: what it sets travels with them.
    method.enter_stage(progress.stage)
    job.samples.targets = stage_targets(
        job.config, job.samples, job.described.input, method, job.fabric, progress.stage
    )
    loader = make_loader(job.samples, job.batches, training.workers, pin_memory=job.fabric.device.type == "cuda")
    network: Any = torch.compile(method) if training.compile else method
    network, optimizer = job.fabric.setup(network, make_optimizer(method, training))
    if "optimizer" in saved:
        with readable(job.out / "last.ckpt"):
            optimizer.load_state_dict(saved["optimizer"])
    for epoch in range(progress.epoch, training.epochs):
        started = time.perf_counter()
        method.epoch.fill_(epoch)
        rate = set_learning_rate(optimizer, training, epoch, 0, len(job.batches))
        # Of all stages: the next one sees other augmentations.
        job.batches.epoch = len(progress.rows)
        row: dict[str, float] = {"epoch": len(progress.rows), "lr": rate}
        row |= {"stage": progress.stage} if method.stages > 1 else {}
        row |= train_epoch(job, network, optimizer, loader, epoch, bar)
        trained = time.perf_counter()
        row |= validate(job)
        row |= {"seconds": trained - started, "valid_seconds": time.perf_counter() - trained}
        finish_epoch(job, network, optimizer, progress, row)
        scores = [f"{name} {value:.3g}" for name, value in row.items() if name.startswith("valid/")]
        bar.set_postfix_str(" ".join(scores))


def train_epoch(
    job: Job, network: Any, optimizer: torch.optim.Optimizer, loader: Iterable[Any], epoch: int, bar: Any
) -> dict[str, float]:
    """One pass over the training split; returns the mean of every loss term."""
    network.train()
    fabric, batches, training = job.fabric, job.batches, job.config.training
    sums, count = {}, 0.0
    for step, batch in enumerate(loaded(loader)):
        set_learning_rate(optimizer, training, epoch, step, len(batches))
        torch.manual_seed(seed_of(training.seed, batches.epoch, step, fabric.global_rank))
        batch = job.method.prepare(fabric.to_device(batch))
        if training.channels_last:
            batch = batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
        out = network(batch.image)
        terms = job.method.loss(out, batch, epoch)
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise InputError(
                f"the loss is no longer finite in epoch {batches.epoch}, batch {step} ({', '.join(batch.names)}): "
                + ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
                + "; lower --lr, or look at these images"
            )
        weight = batches.weight(step)
        fabric.backward(total * weight)
        optimizer.step()
        optimizer.zero_grad()
        # Weighted by the global batch, so that the mean over processes is the mean over samples.
        size = batches.size(step)
        for name, value in (terms | {"total": total}).items():
            sums[name] = sums.get(name, 0.0) + value.detach() * (weight * size)
        count += size
        bar.update()
        bar.set_postfix_str(" ".join(f"{name} {value.item():.3g}" for name, value in terms.items()), refresh=False)
    means: Any = fabric.all_reduce({name: value / count for name, value in sums.items()}, reduce_op="mean")
    return {f"train/{name}": float(value) for name, value in means.items()}


def validate(job: Job) -> dict[str, float]:
    """Classification error and cross-entropy on the validation labels; mask metrics only where asked for."""
    fabric, method, table, training = job.fabric, job.method, job.table, job.config.training
    with_masks = training.monitor == "masks" or training.selection == "pxap-masks"
    if not (method.classifies or with_masks):
        return {}
    samples = table.split("valid")[fabric.global_rank :: fabric.world_size]
    if not with_masks:
        samples = tuple(dataclasses.replace(sample, mask=None) for sample in samples)
    # No range is learned before the last epoch: masks are measured on maps that are stretched in every image.
    predictor = Predictor(method, job.described, fabric.device, range="image" if method.unit == "score" else None)
    with fabric.autocast():
        empty_class = job.described.empty_class if with_masks else None
        localizes = model_localizes(predictor, MapOptions(threshold=0.5))
        part = measure(localizes, table, samples, empty_class=empty_class).metrics
    metrics = LocalizationMetrics(table.classes)
    for state in processes.gather(fabric, part.state()):
        metrics.merge(state)
    row: dict[str, float] = {}
    if method.classifies:
        state = metrics.state()
        truth = (state["probabilities"] * state["labels"]).sum(axis=1)
        row["valid/cross_entropy"] = float(-torch.tensor(truth).clamp_min(1e-12).log().mean())
    result = metrics.compute(bootstrap=0)
    for name in ("cl_error", *(("f1_plus", "f1_minus", "pxap") if with_masks else ())):
        if (value := getattr(result, name).value) is not None:
            row[f"valid/{name}"] = value
    return row


def finish_epoch(
    job: Job, network: Any, optimizer: torch.optim.Optimizer, progress: Progress, row: dict[str, float]
) -> None:
    """Select, log, save: in this order, so that a kill at any moment loses at most the epoch."""
    key = selection_key(row, job.config.training)
    selected = progress.best is None or key >= progress.best
    if selected:
        progress.best, progress.best_weights = key, _weights(job.method)
    progress.epoch += 1
    progress.rows.append(row | {"selected": float(selected)})
    if job.fabric.is_global_zero:
        if selected:
            _save_selected(job, progress.best_weights, row)
        with atomic_path(job.out / "log.csv") as temporary:
            pd.DataFrame(progress.rows).to_csv(temporary, index=False)
    job.fabric.log_dict({k: v for k, v in row.items() if k != "epoch"}, step=int(row["epoch"]))
    save_checkpoint(job.fabric, job.out, {"network": network, "optimizer": optimizer}, progress)


def finish_stage(job: Job, progress: Progress) -> bool:
    """Go back to the selected weights and let the method look back; returns whether there is a next stage."""
    method = job.method
    if method.stages == 1:
        return False
    rows = progress.rows[-progress.epoch :]
    method.load_state_dict(progress.best_weights)
    more = method.end_stage(rows) and progress.stage + 1 < method.stages
    if job.fabric.is_global_zero:
        _save_selected(job, _weights(method), next(row for row in reversed(rows) if row["selected"]))
    if more:
        progress.stage, progress.epoch, progress.best = progress.stage + 1, 0, None
        # The next stage has an optimizer of its own.
        save_checkpoint(job.fabric, job.out, {"network": method}, progress)
    return more


def _complete(model: Path, config: RunConfig, table: Table, device: torch.device, progress: bool) -> None:
    save_images(model, images_behind(config, table))
    calibrate(model, table, config.training.threshold, device, progress=progress)


def _begin(out: Path, config: RunConfig, inputs: dict[str, Any] | None) -> None:
    write_json(out / INPUTS_FILE, inputs)
    write_run(out / RUN_FILE, config)  # last, because it is what says that the folder holds a run


def _fabric(training: TrainingConfig, out: Path) -> Fabric:
    cuda = training.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    precision: Any = training.precision
    if precision == "auto":
        precision = "bf16-mixed" if cuda and torch.cuda.is_bf16_supported() else "32-true"
    devices: Any = int(training.devices) if training.devices.isdigit() else training.devices
    environment, started = _environment()
    if started > 1 and devices not in ("auto", started):
        raise InputError(
            f"--devices {devices}: srun or torchrun started {started} processes on this machine; give --devices "
            f"{started}, or let them start one"
        )
    if started > 1 or (devices == "auto" and not cuda):
        devices = started
    try:
        logger = TensorBoardLogger(root_dir=out, name="tensorboard", version="") if find_spec("tensorboard") else None
        return Fabric(
            accelerator=training.accelerator,
            devices=devices,
            num_nodes=training.nodes,
            precision=precision,
            loggers=logger,
            plugins=[environment],
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"--accelerator {training.accelerator} --devices {training.devices}: not usable here ({error}); "
            "try --accelerator cpu --devices 1"
        ) from error


def _environment() -> tuple[ClusterEnvironment, int]:
    """What started this process, and how many of them on this machine.

    A batch script runs alone although it has the variables of all tasks of its job; those of srun's own say how many
    processes it started.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment(), int(os.environ["LOCAL_WORLD_SIZE"])
    tasks, machines = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("TASKS", "NODES"))
    if tasks == 1:
        return LightningEnvironment(), 1
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(tasks // machines))  # which --ntasks leaves out
    return SLURMEnvironment(auto_requeue=False), tasks // machines


def _weights(method: Method) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in method.state_dict().items()}


def _save_selected(job: Job, weights: dict[str, torch.Tensor], row: dict[str, float]) -> None:
    rule = job.config.training.selection
    masks = sum(s.mask is not None for s in job.table.split("valid")) if rule == "pxap-masks" else 0
    selection = Selection(rule, int(row["epoch"]), masks, masks > 0)
    save_model(job.out / "model", weights, dataclasses.replace(job.described, selection=selection))
