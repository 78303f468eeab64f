"""Many slides: one task for each, and one table over all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from histoloc.checkpoint import ModelConfig, find_model, read_model_config
from histoloc.errors import InputError
from histoloc.files import atomic_path
from histoloc.slide_maps.grid import SMALLEST_TILE
from histoloc.slide_maps.settings import Means, Precision, Scale, Settings
from histoloc.slides.jobs import run_jobs

SLIDE_SUFFIXES = {
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".czi", ".png",
    ".jpg", ".jpeg", ".bmp",
}  # fmt: skip


class Cohort(NamedTuple):
    """What came out.

    Attributes:
        table: a row per slide, those with the highest score first; also in slides.csv.
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
    scale: Scale = "auto",
    tissue: bool = True,
    min_area_mm2: float = 0.001,
    precision: Precision = "auto",
    batch: int = 8,
    readers: int = 2,
    device: str = "auto",
    workers: int = 1,
    scheduler: str | None = None,
    memory_gb: float = 4.0,
    resume: bool = True,
    progress: bool = True,
) -> Cohort:
    """Predict slides: for each a map, outlines, an answer and a picture, and one table over all.

    A second call with the same settings does only what is missing, and goes on in the middle of a slide.

    Args:
        model: a run or a model folder.
        slides: files, or folders whose slides are taken (not those of sub-folders).
        out: folder for `slides.csv` and a folder for each slide.
        mpp: µm/px at which tiles are read; None for what the model was trained at.
        slide_mpp: µm/px of level 0 of slides that do not say it; the others keep their own.
        tile: side of a tile in pixels; None for 512, or, where the model resizes its images, for the side of its
            training images, since other tiles would be seen at another scale.
        overlap: share of a tile that its neighbour sees too, in [0, 0.9].
        threshold: cut the maps here instead of where the model says.
        empty_class: the class without ROI (normal tissue); None for what the model was trained with.
        scale: what makes evidence a map: `model` (the range learned in training), `slide` (the slide's own), `auto`.
        tissue: look at tissue alone.
        min_area_mm2: smaller regions get no outline.
        precision: float32, bf16, or auto: bf16 on a GPU that has it.
        batch: tiles at a time.
        readers: threads that read tiles.
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
    config, folder = read_model_config(model), find_model(model)
    if mpp is None and config.mpp is None:
        raise InputError(
            f"{model}: does not say at how many micrometres per pixel it was trained; give --mpp, the scale of its "
            f"training images"
        )
    empty_class = empty_class or getattr(config.options, "empty_class", None)
    if empty_class is not None and empty_class not in config.classes:
        raise InputError(f"--empty-class {empty_class!r} is not a class of {model}; choose of {list(config.classes)}")
    settings = Settings(
        model=str(folder.absolute()),
        weights_sha256=config.weights_sha256,
        mpp=float(mpp or config.mpp or 0),
        tile=tile or tile_of(config),
        overlap=overlap,
        threshold=threshold,
        empty_class=empty_class,
        scale=scale,
        tissue=tissue,
        min_area_mm2=min_area_mm2,
        precision=precision,
    )
    out = Path(out).absolute()
    items = _items(slides, out, slide_mpp)
    if not resume:
        _forget(out, items)
    alone = workers == 1 and scheduler is None
    # Here, and not above: PyTorch takes seconds to load, and what is wrong should be told before.
    from histoloc.slide_maps.task import predict_slide

    means = Means(device, batch, readers, progress=progress and alone)
    result = run_jobs(
        partial(predict_slide, means=means),
        items,
        out,
        settings=vars(settings),
        workers=workers,
        scheduler=scheduler,
        retries=1,
        memory_gb=memory_gb,
        progress=progress,
    )
    if not result.done:
        raise InputError("; ".join(f"{name}: {reason}" for name, reason in result.failed.items()))
    table = cohort_table(result.done)
    with atomic_path(out / "slides.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    notes = sorted({note for told in result.done.values() for note in told["notes"]})
    return Cohort(table, result.failed, (*_scale_notes(config, settings), *notes))


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


def _items(given: Sequence[Path], out: Path, slide_mpp: float | None) -> dict[str, dict[str, Any]]:
    """What each task has to know, by the slide's name."""
    items: dict[str, dict[str, Any]] = {}
    for path in (file.absolute() for one in given for file in _slide_files(Path(one))):
        name = path.stem
        if name in items:
            raise InputError(
                f"{path}: has the same name as {items[name]['slide']}, and their results would overwrite each other; "
                f"predict them into different folders"
            )
        items[name] = {
            "slide": str(path),
            "bytes": path.stat().st_size,
            "slide_mpp": slide_mpp,
            "name": name,
            "folder": str(out / name),
        }
    return items


def _slide_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such slide or folder; check the path")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SLIDE_SUFFIXES and file.is_file())
    if not found:
        raise InputError(f"{path}: holds no slide ({', '.join(sorted(SLIDE_SUFFIXES))}); check the folder")
    return found


def _forget(out: Path, items: dict[str, dict[str, Any]]) -> None:
    """Let the slides be done anew: without its part nothing is taken for done."""
    for part in (out / "parts").glob("*.json"):
        part.unlink()
    (out / "settings.json").unlink(missing_ok=True)
    for item in items.values():
        for kept in (Path(item["folder"]) / "work").glob("evidence*"):
            kept.unlink()


def tile_of(config: ModelConfig) -> int:
    """Side of the tiles that a model is used with, in pixels of its own mpp; a multiple of 16."""
    if not config.input.small_side or config.shorter_side is None:
        return 512
    return max(SMALLEST_TILE, round(config.shorter_side / 16) * 16)


def _scale_notes(config: ModelConfig, settings: Settings) -> list[str]:
    """Where the network sees tissue at another scale than in training."""
    small_side, side = config.input.small_side, config.shorter_side
    if small_side and side is None:
        return [
            f"the model resizes its images to {small_side} px and does not say how large they were: with --tile "
            f"{settings.tile} it sees {settings.mpp * settings.tile / small_side:.3g} µm/px; choose --tile as large "
            f"as the shorter side of its training images"
        ]
    if config.mpp is None:
        return []
    trained = config.mpp * (side / small_side if small_side and side else 1)
    seen = settings.mpp * (settings.tile / small_side if small_side else 1)
    if abs(seen - trained) <= 0.1 * trained:
        return []
    return [
        f"the network was trained at {trained:.3g} µm/px and sees these slides at {seen:.3g}; leave --mpp and --tile "
        f"out for results that can be trusted"
    ]
