"""Several processes that train one model: what each of them needs, and what they must have in common."""

import sys
from typing import Any, cast

import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from histoloc.config import RunConfig, TrainingConfig, method_class
from histoloc.data.table import Table
from histoloc.data.trainset import EpochBatches
from histoloc.errors import InputError
from histoloc.methods import Method


def launched_elsewhere(fabric: Any) -> bool:
    """Whether torchrun, SLURM or the first process started this process: then the others are already there."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    return environment is not None and environment.creates_processes_externally


def check_batch(fabric: Any, config: RunConfig, table: Table) -> None:
    """Make sure that every process has an image of its own in every step.

    Raises:
        InputError: the batch, or the training split, has fewer images than there are processes.
    """
    if method_class(config.method).supervision:
        EpochBatches(len(table.split("train")), config.training.batch, config.training.seed, world=fabric.world_size)


def check_machines(fabric: Any, training: TrainingConfig, table: Table) -> None:
    """Make sure that all machines have the same table and the same images, which each of them reads by itself.

    Raises:
        InputError: they differ; in the first process. The others end with exit code 2.
    """
    if training.nodes == 1:
        return
    prints = gather(fabric, table.fingerprint() if fabric.local_rank == 0 else None)
    if len({one for one in prints if one is not None}) == 1:
        return
    if not fabric.is_global_zero:
        raise SystemExit(2)
    raise InputError(
        f"{table.path}: has another content on one of the {training.nodes} machines; put it and its images into a "
        "folder that all of them share"
    )


def computed_on(fabric: Any) -> dict[str, Any]:
    """Kind of device, precision and number of processes: what `auto` has become, and results depend on."""
    precision = str(fabric.strategy.precision.precision)
    return {"accelerator": fabric.device.type, "precision": precision, "processes": fabric.world_size}


def cache_bytes(fabric: Any, training: TrainingConfig) -> int:
    """Memory for decoded images that each process of a machine may take."""
    return int(training.cache_gb * 2**30 / max(1, fabric.world_size // training.nodes))


def share_statistics(fabric: Any, method: Method) -> Method:
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


def gather(fabric: Any, part: Any) -> list[Any]:
    """The parts of all processes, by rank; every process must call this."""
    if fabric.world_size == 1:
        return [part]
    parts: list[Any] = [None] * fabric.world_size
    dist.all_gather_object(parts, part)
    return parts
