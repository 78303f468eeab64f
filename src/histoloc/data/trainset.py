"""Training samples in the order and with the randomness that (seed, epoch, sample) fix."""

import os
import pickle
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from tqdm import tqdm

from histoloc.data.pixels import read_pixels, read_truth, sample_mpp
from histoloc.data.table import Sample, Table
from histoloc.data.transforms import Augment, InputConfig, bring_to_scale, load_tensor
from histoloc.errors import InputError
from histoloc.progress import Bar
from histoloc.types import Batch, Drawn

SHARED = Path("/dev/shm")  # through which workers send batches, on Linux


def seed_of(*parts: int) -> int:
    """A 63-bit seed that depends on all parts, for example (seed, epoch, sample)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class Key:
    """Asks the dataset for a sample as it looks in an epoch."""

    epoch: int
    index: int


class Item(NamedTuple):
    """One augmented sample."""

    image: Tensor  # (3, crop, crop) float32
    labels: tuple[int, ...]  # of its classes
    mask: Tensor | None  # (1, crop, crop) float32
    target: Tensor | None  # (1, crop, crop) float32
    name: str
    drawn: tuple[Tensor, Tensor] | None = None  # image and mask of a drawn image, of the same shapes


@dataclass(eq=False)
class TrainSet(Dataset[Item]):
    """Augmented samples of a table; decoded and resized images stay in memory when they fit.

    Args:
        table: where the class numbers come from.
        samples: what to train on.
        config: resizing and augmentation.
        seed: of the run.
        with_masks: also give masks, for methods that learn from masks, real or drawn.
        drawn: drawn images with masks, one of which goes with each sample.
        empty_class: images of this class have no ROI, also without a mask file.
        cache_bytes: memory that decoded images may take in this process; above it images are decoded at each use. Of
            several processes each may need every image, as the order is another one in every epoch.
        progress: show a bar while images are read.
    """

    table: Table
    samples: Sequence[Sample]
    config: InputConfig
    seed: int
    _: KW_ONLY
    with_masks: bool = False
    drawn: "TrainSet | None" = None
    empty_class: str | None = None
    cache_bytes: int = 4 << 30
    progress: bool = False
    # By sample, (1, h, w) uint8 0..255: what a stage learns from besides; set between stages.
    targets: list[Tensor] | None = None

    def __post_init__(self) -> None:
        self.augment = Augment(self.config)
        lacking = [s for s in self.samples if s.mask is None and s.labels != (self.empty_class,)]
        if self.with_masks and lacking:
            raise InputError(
                f"{self.table.path}: {lacking[0].name} has no mask, and this method learns from masks; fill the mask "
                "column, name the class whose images have no ROI by --empty-class, or choose a method that learns "
                "from labels"
            )
        self.cache: list[tuple[Tensor, Tensor | None]] | None = None
        count = len(self.samples)
        if self._decode(0)[0].numel() * count <= self.cache_bytes:
            with ThreadPoolExecutor(4) as pool:
                decoded = pool.map(self._decode, range(count))
                self.cache = list(Bar(decoded, "reading images", count, disable=not self.progress, leave=False))

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is not forked: tensors by value, since each shared one would need an open file."""
        return {"values": pickle.dumps(self.__dict__)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(pickle.loads(state["values"]))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Item:
        sample = self.samples[key.index]
        pixels, mask = self.whole(key.index)
        target = None if self.targets is None else self.targets[key.index]
        beside = [part for part in (mask, target) if part is not None]
        seed = seed_of(self.seed, key.epoch, key.index)
        image, moved = self.augment(pixels, torch.cat(beside) if beside else None, seed)
        parts = iter(() if moved is None else moved.split(1))
        mask = None if mask is None else next(parts)
        target = None if target is None else next(parts) / 255
        return Item(image, self.table.label_indices(sample), mask, target, sample.name, self._drawn_beside(key))

    def _drawn_beside(self, key: Key) -> tuple[Tensor, Tensor] | None:
        if self.drawn is None:
            return None
        index = seed_of(self.seed, key.epoch, key.index, 1) % len(self.drawn)
        item = self.drawn[Key(key.epoch, index)]
        assert item.mask is not None
        return item.image, item.mask

    @property
    def labels(self) -> Tensor:
        """Which classes each sample has: (N, K) bool."""
        return several_hot([self.table.label_indices(sample) for sample in self.samples], len(self.table.classes))

    def whole(self, index: int) -> tuple[Tensor, Tensor | None]:
        """A sample at training's scale without augmentation: (3, h, w) uint8 and its mask (1, h, w) uint8 or None."""
        return self.cache[index] if self.cache is not None else self._decode(index)

    def _decode(self, index: int) -> tuple[Tensor, Tensor | None]:
        sample = self.samples[index]
        mpp = sample_mpp(sample) if self.config.mpp is not None else None
        pixels = load_tensor(read_pixels(sample), self.config, mpp)
        if min(pixels.shape[-2:]) < self.config.crop:
            raise InputError(
                f"{sample.name}: {pixels.shape[-1]}x{pixels.shape[-2]} px are smaller than the crop of "
                f"{self.config.crop} px; give a smaller --crop, or a finer --mpp or larger --small-side"
            )
        if not self.with_masks:
            return pixels, None
        truth = None if sample.labels == (self.empty_class,) else read_truth(sample)
        if truth is None:
            return pixels, torch.zeros((1, *pixels.shape[-2:]), dtype=torch.uint8)
        mask = torch.from_numpy(truth.astype(np.uint8))[None]
        return pixels, bring_to_scale(mask, self.config, mpp, nearest=True)


def collate(items: Sequence[Item], classes: int) -> Batch:
    """Stack samples into a batch."""
    images, indices, masks, targets, names, drawn = zip(*items, strict=True)
    first = torch.tensor([own[0] for own in indices])
    several = several_hot(indices, classes)
    return Batch(
        _stacked(images),
        first,
        None if masks[0] is None else _stacked(masks),
        names,
        several if any(len(own) > 1 for own in indices) else None,
        None if targets[0] is None else _stacked(targets),
        None if drawn[0] is None else Drawn(*map(_stacked, zip(*drawn, strict=True))),
    )


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(parts))
    # Here, where an error is heard: in the thread that sends batches torch would lose it, and training would wait.
    return stacked.share_memory_() if get_worker_info() else stacked


def several_hot(indices: Sequence[tuple[int, ...]], classes: int) -> Tensor:
    """Class numbers of N samples -> (N, K) bool."""
    return torch.stack([torch.zeros(classes).index_fill(0, torch.tensor(own), 1).bool() for own in indices])


class EpochBatches(Sampler[list[Key]]):
    """Global batches of one epoch, of which this process takes every `world`-th sample.

    The order is a function of (seed, epoch); all samples are seen once, and every process has one in every batch.
    Samples at the end that are fewer than the processes belong to the batch before: a process without a sample would
    have to repeat one, which batch normalisation over the processes would count again.

    Raises:
        InputError: the batch, or the training split, has fewer samples than there are processes.
    """

    def __init__(self, count: int, batch: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        if batch < world:
            raise InputError(
                f"--batch {batch} for {world} processes: each of them needs an image of its own in every step; give "
                f"--batch {world} or more, or fewer --devices"
            )
        if count < world:
            raise InputError(
                f"the training split has {count} images for {world} processes, each of which needs one of its own; "
                "give fewer --devices"
            )
        self.count, self.batch, self.seed, self.rank, self.world = count, batch, seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch + (self.count % self.batch >= self.world)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng(seed_of(self.seed, self.epoch)).permutation(self.count)
        for step in range(len(self)):
            whole = order[step * self.batch :][: self.size(step)]
            yield [Key(self.epoch, int(i)) for i in whole[self.rank :: self.world]]

    def size(self, step: int) -> int:
        """How many samples batch `step` has, over all processes."""
        return self.count - step * self.batch if step == len(self) - 1 else self.batch

    def weight(self, step: int) -> float:
        """What this process's mean loss counts in batch `step`, so that the mean over processes is the global mean."""
        whole = self.size(step)
        return len(range(self.rank, whole, self.world)) * self.world / whole


def make_loader(samples: TrainSet, batches: EpochBatches, workers: int, *, pin_memory: bool) -> DataLoader[Any]:
    """Load the batches, in processes of their own where `workers` > 0; -1 chooses by the number of cores."""
    cores = os.cpu_count() or 1
    count = workers if workers >= 0 else (0 if cores <= 2 else min(4, cores - 1))
    count = count if _enough_shared_memory(samples, batches, count) else 0
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=partial(collate, classes=len(samples.table.classes)),
        num_workers=count,
        persistent_workers=count > 0,
        pin_memory=pin_memory,
        # Elsewhere processes begin without what this one has read, and are given a copy of it.
        multiprocessing_context="fork" if count and sys.platform == "linux" else None,
    )


def _enough_shared_memory(samples: TrainSet, batches: EpochBatches, workers: int) -> bool:
    """Whether there is room for the batches that wait; a note says where there is none."""
    if not (workers and SHARED.is_dir()):
        return True
    planes = 4 + (samples.targets is not None) + 4 * (samples.drawn is not None)
    batch = 4 * planes * samples.config.crop**2 * -(-batches.batch // batches.world)
    needed, free = batch * (3 * workers + 2), shutil.disk_usage(SHARED).free
    if needed <= free:
        return True
    tqdm.write(
        f"note: {SHARED} has {free / 1e6:.0f} MB free and {workers} workers may need {needed / 1e6:.0f} MB: images are "
        "prepared without workers; in a container more is given by docker run --shm-size=1g",
        file=sys.stderr,
    )
    return False


def loaded(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches; what is wrong with a file is said as if it had been read in this process.

    Raises:
        InputError: a file cannot be used, or a worker died.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise InputError(
            f"a process that prepares images failed ({str(error).strip().splitlines()[-1]}), perhaps for want of "
            "memory or shared memory; go on with --resume --workers 0"
        ) from error
    except InputError as error:
        # A worker of the loader puts its traceback before the sentence.
        raise InputError(str(error).strip().rsplit("InputError: ", 1)[-1]) from error
