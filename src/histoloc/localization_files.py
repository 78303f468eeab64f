"""`histoloc predict`: images in, map, mask and picture of each, and one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from histoloc.data.images import read_image, write_map, write_mask, write_picture
from histoloc.errors import InputError
from histoloc.inputs import IMAGE_SUFFIXES, input_files
from histoloc.options import ALL, PredictionOptions
from histoloc.pictures import overlay
from histoloc.prediction import Predictor, load
from histoloc.slides.reader import stored_mpp
from histoloc.types import Localization
from histoloc.work_folder import atomic_path, locked, safe_name


def predict(model: Path, images: Sequence[Path], out: Path, *, progress: bool = True, **options: Any) -> pd.DataFrame:
    """Localize in files and folders of images; write mask, heatmap and overlay of each, and one CSV.

    Args:
        model: a model folder or a run.
        images: image files, or folders whose images are taken (sub-folders too).
        out: folder to write `NAME_mask.png`, `NAME_map.png`, `NAME_overlay.png` and `predictions.csv` into; for
            `map_class="all"` the first two begin with `NAME_CLASS`.
        progress: show a bar.
        options: of `PredictionOptions`, by name, as `threshold=0.4`.

    Returns:
        The CSV's rows: image, class, prob_<class>, map_class, roi_fraction, roi_mm2, threshold, range, scale.

    Raises:
        InputError: nothing to do, two images of one name, an unreadable image, a folder that cannot be written.
    """
    asked = PredictionOptions(**options)
    if any((out / name).exists() for name in ("run.yaml", "config.json", "slide.json", "benchmark.json")):
        raise InputError(f"{out}: folder contains a run, a model or a slide's results; choose another --out")
    predictor = load(model, asked.device, range=asked.range, empty_class=asked.empty_class)
    predictor.check(asked.threshold, None if asked.map_class == ALL else asked.map_class)
    files = input_files(images, IMAGE_SUFFIXES, "image", deep=True)
    with locked(out):
        return _predict(predictor, files, out, asked, progress=progress)


def _predict(
    predictor: Predictor, files: dict[str, Path], out: Path, asked: PredictionOptions, *, progress: bool
) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    notes: dict[str, list[str]] = {}
    for name, file in tqdm(files.items(), "predicting", disable=not progress):
        pixels, own = read_image(file), stored_mpp(file) if asked.mpp is None else asked.mpp
        answer = predictor.look(pixels, own, tissue=asked.tissue)
        for wanted in _classes(predictor, answer.maps, asked.map_class):
            result = predictor.localize(answer, own, threshold=asked.threshold, map_class=wanted)
            stem = f"{name}_{safe_name(wanted)}" if asked.map_class == ALL and wanted else name
            write_mask(out / f"{stem}_mask.png", result.mask)
            write_map(out / f"{stem}_map.png", result.roi)
            write_picture(out / f"{stem}_overlay.png", overlay(pixels, result.roi, result.mask))
            rows.append({"image": str(file), **describe(result)})
            for note in result.notes:
                notes.setdefault(note, []).append(file.name)
    for note, names in notes.items():
        tqdm.write(f"note: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}")
    table = pd.DataFrame(rows)
    with atomic_path(out / "predictions.csv") as temporary:
        table.to_csv(temporary, index=False)
    return table


def describe(result: Localization) -> dict[str, object]:
    """One localization as flat values for a CSV row."""
    row: dict[str, object] = {"class": result.label or ""}
    if result.probabilities is not None:
        row |= {f"prob_{c}": round(float(p), 6) for c, p in zip(result.classes, result.probabilities, strict=True)}
    mm2 = result.roi_mm2
    row |= {"map_class": result.map_class or "", "roi_fraction": round(result.roi_fraction, 6)}
    row |= {"roi_mm2": "" if mm2 is None else round(mm2, 6), "threshold": round(result.threshold, 6)}
    return row | {"range": result.range or "", "scale": result.scale}


def _classes(predictor: Predictor, maps: int, map_class: str | None) -> list[str | None]:
    """Whose maps are made; None is the predicted class's, or the only one."""
    if map_class != ALL:
        return [map_class]
    if maps == 1:
        return [None]
    empty = predictor.calibration.empty
    return [name for index, name in enumerate(predictor.config.classes) if index != empty]
