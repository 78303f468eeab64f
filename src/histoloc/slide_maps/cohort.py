"""Many slides: one task for each, and one table over all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from histoloc.errors import InputError
from histoloc.model_folder import ModelConfig, find_model, read_model_config
from histoloc.runner import run_jobs
from histoloc.scale import tile_side
from histoloc.slide_maps.settings import WORK, Means, Precision, Settings
from histoloc.types import Range
from histoloc.work_folder import atomic_path, locked

SLIDE_SUFFIXES = {
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi", ".png",
    ".jpg", ".jpeg", ".bmp",
}  # fmt: skip
_RESERVED = {"parts", "slides.csv", "failed.csv", "settings.json"}  # what else lies in the out folder
_TOLD = 3  # reasons at most, where all slides failed
_PROBED = 1 << 16  # bytes read at each of the places by which a slide is known


class Cohort(NamedTuple):
    """What came out.

    Attributes:
        table: a row per slide of this call, those with the highest score first. slides.csv has these rows and those
            of other calls with the same settings and folder.
        failed: the reason by name of each slide that failed.
        notes: what the user should know about how the maps were made.
    """

    table: pd.DataFrame
    failed: dict[str, str]
    notes: tuple[str, ...]


def predict_slides(
    model: Path,
    slides: Sequence[Path],
    out: Path,
    *,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    threshold: float | None = None,
    empty_class: str | None = None,
    range: Range | None = None,
    map_class: str | None = None,
    tissue: bool = True,
    min_area_mm2: float = 0.001,
    precision: Precision = "auto",
    batch: int | None = None,
    readers: int | None = None,
    device: str = "auto",
    workers: int = 1,
    scheduler: str | None = None,
    memory_gb: float = 4.0,
    resume: bool = True,
    progress: bool = True,
) -> Cohort:
    """Predict slides: for each a map, outlines, an answer and a picture, and one table over all.

    A second call with the same settings does only what is missing, and goes on in the middle of a slide. A slide that
    was replaced by another of its name is done anew, and so is one whose folder was removed. Several calls may share
    `out` at the same time, as long as they are not at the same slide.

    Args:
        model: a run or a model folder.
        slides: files, or folders whose slides are taken (not those of sub-folders, and no hidden files).
        out: folder for `slides.csv` and a folder for each slide.
        mpp: µm/px at which tiles are read; None for what the model was trained at.
        slide_mpp: µm/px of level 0 of slides that do not say it; the others keep their own.
        tile: side of a tile in pixels of that scale; None for that of the model's training images, at most 512.
        overlap: share of a tile that its neighbour sees too, in [0, 0.9].
        threshold: cut the maps here instead of where the model says.
        empty_class: the class without ROI (normal tissue); None for what the model was trained with.
        range: how evidence becomes a map: probability or learned; None for what the model folder says.
        map_class: the class whose maps are made; None for the class that each slide is given.
        tissue: look at tissue alone.
        min_area_mm2: smaller regions get no outline.
        precision: float32, bf16, or auto: bf16 on a GPU that has it.
        batch: tiles at a time; None for 2 on a CPU and 16 elsewhere.
        readers: threads that read tiles; None for half as many as there are cores, at most 8.
        device: where to compute.
        workers: processes, one slide each; more than one where several slides share a machine.
        scheduler: address of a Dask scheduler to use instead; its workers must see the same folders.
        memory_gb: a worker process above it is ended and its slide tried again, where there are several.
        resume: go on with what `out` has; otherwise its slides are done anew.
        progress: show bars.

    Raises:
        InputError: a model, slide or number that cannot be used, `out` begun with other settings, or no slide that
            could be predicted.
    """
    config = read_model_config(model)
    settings = Settings(
        model=str(find_model(model).absolute()),
        weights_sha256=config.weights_sha256,
        mpp=_working_mpp(model, config, mpp),
        tile=tile_side(config) if tile is None else tile,
        overlap=overlap,
        threshold=threshold,
        empty_class=_empty_class(model, config, empty_class),
        range=config.range if range is None else range,
        map_class=map_class,
        tissue=tissue,
        min_area_mm2=min_area_mm2,
        precision=precision,
    )
    if scheduler is not None and not re.fullmatch(r"([a-z]+://)?.+:[0-9]+", scheduler):
        raise InputError(f"--scheduler {scheduler}: give an address with a port, as tcp://host:8786")
    means = Means(device, batch, readers, progress=progress and workers == 1 and scheduler is None)
    out = Path(out).absolute()
    items = _items(slides, slide_mpp)
    # Here, and not above: PyTorch takes seconds to load, and what is wrong should be told before.
    from histoloc.prediction import choose_device, load
    from histoloc.slide_maps.task import predict_slide

    if scheduler is None:
        choose_device(device)  # once, and not for each slide
    predictor = load(model, "cpu", range=settings.range, empty_class=settings.empty_class)
    predictor.check(threshold, map_class)
    _make_way(out, settings, items, resume)
    result = run_jobs(
        partial(predict_slide, means=means, out=str(out)),
        items,
        out,
        settings=vars(settings),
        workers=workers,
        scheduler=scheduler,
        retries=1,
        memory_gb=memory_gb,
        progress=progress,
    )
    _write_table(out / "slides.csv", _done_with(out, settings) | result.done)
    if not result.done:
        raise InputError(_all_failed(out, result.failed))
    notes = sorted({note for told in result.done.values() for note in told["notes"]})
    return Cohort(cohort_table(result.done), result.failed, (*_scale_notes(config, settings), *notes))


def _working_mpp(model: Path, config: ModelConfig, asked: float | None) -> float:
    mpp = config.mpp if asked is None else asked
    if mpp is None:
        raise InputError(
            f"{model}: does not say at how many micrometres per pixel it was trained; give --mpp, the scale of its "
            f"training images"
        )
    return float(mpp)


def _empty_class(model: Path, config: ModelConfig, asked: str | None) -> str | None:
    name = asked or config.empty_class
    if name is not None and name not in config.classes:
        raise InputError(f"--empty-class {name!r} is not a class of {model}; choose of {list(config.classes)}")
    return name


def _all_failed(out: Path, failed: Mapping[str, str]) -> str:
    """Some reasons; a cohort may have thousands."""
    said = [f"{name}: {reason}" for name, reason in list(failed.items())[:_TOLD]]
    more = len(failed) - len(said)
    return "; ".join([*said, f"and {more} more, see {out / 'failed.csv'}"] if more else said)


def _done_with(out: Path, settings: Settings) -> dict[str, dict[str, Any]]:
    """What is told of the slides that `out` has with these settings."""
    done: dict[str, dict[str, Any]] = {}
    for file in sorted(out.glob("*/slide.json")):
        told = _read(file)
        if isinstance(told, dict) and told.get("settings") == vars(settings):
            done[file.parent.name] = told
    return done


def _write_table(path: Path, done: dict[str, dict[str, Any]]) -> None:
    if done:
        with atomic_path(path) as temporary:
            cohort_table(done).to_csv(temporary, index=False, lineterminator="\n")
    else:
        path.unlink(missing_ok=True)


def cohort_table(done: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row per slide from what `predict_slide` tells, those with the highest score first.

    Returns:
        Columns slide, name, class, score, prob_<class>, roi_share, roi_mm2, tissue_mm2, regions, largest_mm2, folder.
    """
    rows = []
    for name, told in done.items():
        probabilities = {f"prob_{c}": round(p, 6) for c, p in (told["probabilities"] or {}).items()}
        roi = told["roi"]
        rows.append(
            {"slide": told["slide"], "name": name, "class": told["class"] or "", "score": round(told["score"], 6)}
            | probabilities
            | {"roi_share": round(roi["share"], 6), "roi_mm2": roi["mm2"], "tissue_mm2": roi["tissue_mm2"]}
            | {"regions": roi["regions"], "largest_mm2": roi["largest_mm2"], "folder": name}
        )
    return pd.DataFrame(rows).sort_values(["score", "name"], ascending=[False, True], ignore_index=True)


def _items(given: Sequence[Path], slide_mpp: float | None) -> dict[str, dict[str, Any]]:
    """What each task has to know, by the slide's name; without the out folder, so that this may be moved."""
    items: dict[str, dict[str, Any]] = {}
    for path in (file.absolute() for one in given for file in _slide_files(Path(one))):
        name = path.stem
        if name in items:
            raise InputError(
                f"{path}: has the same name as {items[name]['slide']}, and their results would overwrite each other; "
                f"predict them into different folders"
            )
        if name in _RESERVED:
            raise InputError(f"{path}: the out folder has a {name!r} of its own; rename the slide")
        items[name] = {"slide": str(path), "mark": _mark(path), "slide_mpp": slide_mpp, "name": name}
    return items


def _mark(path: Path) -> str:
    """By what a slide is known, whose pixels would take minutes to read: its size, beginning, middle and end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256(str(size).encode())
            for start in (0, size // 2, max(0, size - _PROBED)):
                file.seek(start)
                digest.update(file.read(_PROBED))
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()[:16]


def _slide_files(path: Path) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise InputError(f"{path}: no such slide or folder; check the path")
        # Some systems leave a hidden file of the same ending beside each slide.
        found = [file for file in path.iterdir() if file.suffix.lower() in SLIDE_SUFFIXES and file.name[0] != "."]
        found = sorted(file for file in found if file.is_file())
    except OSError as error:
        raise _unreadable(path, error) from error
    if not found:
        raise InputError(f"{path}: holds no slide ({', '.join(sorted(SLIDE_SUFFIXES))}); check the folder")
    return found


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions")


def _make_way(out: Path, settings: Settings, items: Iterable[str], resume: bool) -> None:
    """Let be done anew what has to be: a slide without its part is not taken for done.

    Raises:
        InputError: `out` cannot be written, or another call is at one of the slides.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        parts = list((out / "parts").glob("*.json"))
        anew = {name for name in items if not resume or not (out / name / "slide.json").exists()}
        for part in parts if anew else ():
            if _slide_of(part) in anew:
                part.unlink()
        for name in () if resume else anew:
            if (out / name).is_dir():
                with locked(out / name):
                    (out / name / "slide.json").unlink(missing_ok=True)
                    shutil.rmtree(out / name / WORK, ignore_errors=True)
        begun = any((out / "parts").glob("*.json")) or any(file.stat().st_size for file in out.glob(f"*/{WORK}/*.bin"))
        # Settings with which nothing was made yet may be mistaken ones. The same ones stay: another call may read them.
        if (not resume or not begun) and _read(out / "settings.json") != vars(settings):
            (out / "settings.json").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error


def _slide_of(part: Path) -> str | None:
    """Name of the slide whose part this is; None where it is damaged."""
    with suppress(KeyError, TypeError):
        return _read(part)["item"]["name"]
    return None


def _read(file: Path) -> Any:
    """What a JSON file holds; None where it is absent or damaged."""
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return None


def _scale_notes(config: ModelConfig, settings: Settings) -> list[str]:
    """Where the network sees tissue at another scale than in training."""
    if config.mpp is None or abs(settings.mpp - config.mpp) <= 0.1 * config.mpp:
        return []
    return [
        f"the network was trained at {config.mpp:.3g} µm/px and sees these slides at {settings.mpp:.3g}; leave --mpp "
        f"out for results that can be trusted"
    ]
