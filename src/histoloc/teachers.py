"""Teachers: finished models whose maps of the training images another model learns from."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from histoloc.config import RunConfig, method_class
from histoloc.data.fingerprint import image_marks
from histoloc.data.pixels import read_pixels, sample_mpp
from histoloc.data.table import Sample, Table, read_table
from histoloc.data.trainset import TrainSet
from histoloc.data.transforms import InputConfig, bring_to_scale
from histoloc.errors import InputError
from histoloc.methods.mean_teacher import MeanTeacher
from histoloc.model_folder import images_seen, load_model, read_model_config
from histoloc.prediction import Pixels, Predictor
from histoloc.processes import gather
from histoloc.progress import Bar
from histoloc.work_folder import INPUTS_FILE, check_claim, read_json


class Teacher(NamedTuple):
    """A model that teaches, and the marks of the images whose label or mask it learned."""

    folder: Path
    model: Predictor
    learned: frozenset[str]


def check_sources(config: RunConfig, table: Table) -> None:
    """Make sure that a run's prior, drawn images and teachers may take part in it; see `check_held_out`.

    Raises:
        InputError: they may not, or the method does not learn from drawn images or teachers.
    """
    method = method_class(config.method)
    if config.drawn is not None and not issubclass(method, MeanTeacher):
        raise InputError(f"--drawn: {config.method} does not learn from drawn images; leave it out")
    held_out = set(image_marks([sample for sample in table.samples if sample.split in ("valid", "test")]))
    for sample, mark in _drawn_marks(config):
        if mark in held_out:
            raise InputError(
                f"--drawn {config.drawn}: has {sample.name}, which this run holds out; leave its rows out of that table"
            )
    if config.prior is not None:
        check_held_out([Path(config.prior)], table, "--prior")
    if config.teachers and not method.taught:
        raise InputError(
            f"--teachers: {config.method} does not learn from maps of others; use `histoloc train student`"
        )
    if method.taught and not (config.teachers or config.prior or config.drawn):
        raise InputError(
            f"{config.method}: its map learns from other models or drawn images; give --teachers, --prior or --drawn"
        )
    check_held_out(config.teachers, table, "--teachers")


def images_behind(config: RunConfig, table: Table) -> set[str]:
    """Marks of the images that a run learned from: its own, the drawn ones, and those of its prior and teachers."""
    own = set(image_marks([sample for sample in table.samples if sample.split == "train"]))
    own |= {mark for _, mark in _drawn_marks(config)}
    sources = [*config.teachers, *([] if config.prior is None else [Path(config.prior)])]
    return own.union(*map(images_seen, sources))


def _drawn_marks(config: RunConfig) -> list[tuple[Sample, str]]:
    """The training images of the table of drawn images, each with its mark."""
    samples = () if config.drawn is None else read_table(config.drawn).split("train")
    return list(zip(samples, image_marks(samples), strict=True))


def teacher_inputs(config: RunConfig, out: Path) -> dict[str, Any]:
    """What a run keeps of its teachers and its prior: the checksum of each one's weights.

    Raises:
        InputError: the run was begun with other weights of them.
    """
    sources = [*config.teachers, *([] if config.prior is None else [Path(config.prior)])]
    if not sources:
        return {}
    now = [read_model_config(folder).weights_sha256 for folder in sources]
    if (out / "last.ckpt").exists():
        before = (read_json(out / INPUTS_FILE) or {}).get("teachers")
        before = list(before.values()) if isinstance(before, dict) else before  # with their places, until 0.2
        # By their order: a folder may have been moved since.
        names = [*map(str, sources), *(f"teacher {n}" for n in range(len(sources) + 1, len(before or ()) + 1))]
        of = [dict(zip(names, weights, strict=False)) for weights in (before or now, now)]
        check_claim(out, *of)
    return {"teachers": now}


def check_held_out(folders: Sequence[Path], table: Table, option: str) -> None:
    """Make sure that models learned from no image that a table holds out.

    Args:
        folders: of the models.
        table: with the fold of the run that they take part in.
        option: by which they were given, for the message.

    Raises:
        InputError: one did, or its folder does not say which images it learned from.
    """
    held_out = [sample for sample in table.samples if sample.split in ("valid", "test")]
    marks = dict(zip(image_marks(held_out), held_out, strict=True))
    for folder in folders:
        for sample in [marks[mark] for mark in marks if mark in images_seen(folder)][:1]:
            raise InputError(
                f"{option} {folder}: it learned from {sample.name}, which this run holds out (split {sample.split}); "
                "give a model that was trained within this run's training images"
            )


def open_teachers(folders: Sequence[Path], table: Table, device: torch.device | str) -> list[Teacher]:
    """Open models that teach the training images of a table.

    Raises:
        InputError: no finished model, one that cannot make calibrated maps, or one that learned from held-out images.
    """
    check_held_out(folders, table, "--teachers")
    teachers = []
    for folder in folders:
        model = Predictor(*load_model(folder), device)
        # Without labels and masks, as a prior is adapted, no map is learned by heart.
        by_heart = {"image", "pixel"} & set(model.config.supervision)
        teachers.append(Teacher(folder, model, images_seen(folder) if by_heart else frozenset()))
    for teacher in teachers:
        try:
            teacher.model.check()
        except InputError as error:
            raise InputError(f"--teachers {teacher.folder}: {error}") from error
    return teachers


def lessons(teachers: Sequence[Teacher], samples: Sequence[Sample]) -> tuple[list[list[Teacher]], list[str]]:
    """Who teaches each sample: the teachers that did not learn from it, or all of them where every one did.

    Returns:
        The teachers of each sample; and how many images each of them teaches, one sentence each.
    """
    marks = image_marks(samples)
    chosen = [[t for t in teachers if mark not in t.learned] or list(teachers) for mark in marks]
    notes = []
    for teacher in teachers:
        own = [mark in teacher.learned for mark, several in zip(marks, chosen, strict=True) if teacher in several]
        known = f", of which it learned from {sum(own)} itself" if any(own) else ""
        notes.append(f"{teacher.folder} teaches {len(own)} of {len(samples)} images{known}")
    return chosen, notes


def targets(config: RunConfig, table: Table, training: TrainSet, seen_as: InputConfig, fabric: Any) -> list[Tensor]:
    """The teachers' targets of all training images, shared out among the processes; see `taught`.

    Raises:
        InputError: as `open_teachers`, or an image cannot be used.
    """
    samples, rank, world = training.samples, fabric.global_rank, fabric.world_size
    chosen, notes = lessons(open_teachers(config.teachers, table, fabric.device), samples)
    for note in notes if rank == 0 else ():
        tqdm.write(note, file=sys.stderr)
    own = Bar(range(rank, len(samples), world), "teachers' maps", disable=not training.progress, leave=False)
    made = [taught(chosen[i], samples[i], seen_as, config.empty_class) for i in own]
    parts = gather(fabric, made)
    return [parts[i % world][i // world] for i in range(len(samples))]


def taught(teachers: Sequence[Teacher], sample: Sample, config: InputConfig, empty_class: str | None) -> Tensor:
    """The mean of the teachers' ROI maps of a training image.

    Of a teacher with a map for each class that of the image's own class is taken, since its label is known; of an image
    with several classes the largest of theirs.

    Args:
        teachers: at least one.
        sample: the image.
        config: of the run, which says at which scale the result is needed.
        empty_class: images of this class have no ROI.

    Returns:
        (1, h, w) uint8, 0 to 255 for 0 to 1, of the size that training sees.

    Raises:
        InputError: the image cannot be used.
    """
    pixels, mpp = read_pixels(sample), sample_mpp(sample)
    mean = np.mean([_roi(teacher.model, sample, pixels, mpp) for teacher in teachers], axis=0)
    if sample.labels == (empty_class,):
        mean = np.zeros_like(mean)
    whole = bring_to_scale(torch.from_numpy(mean)[None], config, mpp if config.mpp is not None else None)
    return (whole * 255).round().clamp(0, 255).to(torch.uint8)


def _roi(model: Predictor, sample: Sample, pixels: Pixels, mpp: float | None) -> NDArray[np.float32]:
    answer = model.infer(pixels, mpp)
    classes, empty = model.config.classes, model.calibration.empty
    own = [classes.index(name) for name in sample.labels if name in classes and classes.index(name) != empty]
    if own:  # known to have ROI
        calibration = replace(model.calibration, gated=False)
        return np.max([answer.roi(index, calibration) for index in own], axis=0)
    return answer.roi(int(answer.probabilities.argmax()) if classes else 0, model.calibration)
