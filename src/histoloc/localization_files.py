"""`histoloc predict`: images in, map, mask and picture of each, and one table."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from histoloc.data.images import read_image, write_map, write_mask, write_picture
from histoloc.data.table_problems import refuse
from histoloc.errors import InputError
from histoloc.inputs import IMAGE_SUFFIXES, PREDICTIONS, Paths, input_files
from histoloc.model_folder import map_classes
from histoloc.options import ALL, PredictionOptions
from histoloc.pictures import overlay
from histoloc.prediction import Predictor, load
from histoloc.progress import Bar
from histoloc.slides.reader import stored_mpp
from histoloc.types import Localization
from histoloc.work_folder import locked, safe_name


def predict(
    model: Path | str, images: Paths, out: Path | str, *, progress: bool = True, **options: Any
) -> pd.DataFrame:
    """Localize in files and folders of images; write mask, heatmap and overlay of each, and one CSV.

    An image that cannot be used has a row with the reason in the column error, and the others go on. The CSV is written
    row by row.

    Args:
        model: a model folder, a run, or a shipped prior, as `prior:glands`.
        images: image files, or folders whose images are taken (sub-folders too, but no hidden files and no results of
            earlier calls).
        out: folder to write `NAME_mask.png`, `NAME_map.png`, `NAME_overlay.png` and `predictions.csv` into; for
            `map_class="all"` the pictures' names begin with `NAME_CLASS`, for `scales` with `NAME_0.5mpp`. Those of
            sub-folders lie in sub-folders.
        progress: show a bar.
        options: of `PredictionOptions`, by name, as `threshold=0.4`.

    Returns:
        The CSV's rows: image, class, prob_<class>, map_class, roi_fraction, roi_mm2, threshold, range, mpp (of the
        image, where it is known), scale, error. Of a model that does not classify, class is empty and prob_<class>
        absent.

    Raises:
        InputError: nothing to do, two images of one name, no image that can be used, a folder that cannot be written.
    """
    model, out, settings = Path(model), Path(out), PredictionOptions(**options)
    if any((out / name).exists() for name in ("run.yaml", "config.json", "slide.json", "benchmark.json")):
        raise InputError(f"{out}: folder contains a run, a model or a slide's results; choose another --out")
    predictor = load(model, settings.device, range=settings.range, empty_class=settings.empty_class)
    predictor.check(settings.threshold, None if settings.map_class == ALL else settings.map_class)
    files = input_files(images, IMAGE_SUFFIXES, "image", deep=True, out=out)
    with locked(out):
        return _Writer(predictor, settings, map_classes(model, settings), out).write(files, progress=progress)


class _Writer:
    """Writes the results of images one after the other."""

    def __init__(
        self, predictor: Predictor, settings: PredictionOptions, classes: Sequence[str | None], out: Path
    ) -> None:
        self.predictor, self.settings, self.classes, self.out = predictor, settings, classes, out
        self.rows: list[dict[str, object]] = []
        self.written = 0  # rows that are in the CSV; none before there is a result, whose columns are those of all
        self.notes, self.sure = defaultdict[str, list[str]](list), defaultdict[float | None, list[float]](list)

    def write(self, files: Mapping[str, Path], *, progress: bool) -> pd.DataFrame:
        """Write everything of each file and say what there is to say."""
        for name, file in Bar(files.items(), "predicting", disable=not progress):
            try:
                results = list(self._results(name, file))
            except InputError as error:
                self.rows.append({"image": str(file), "error": str(error)})
                continue
            for stem, pixels, result in results:
                _write_pictures(self.out, stem, pixels, result)
                self.rows.append({"image": str(file), **_row(result), "error": ""})
                for note in result.notes:
                    self.notes[note].append(file.name)
            self._append()
        if not self.written:
            refuse(self.out, [str(row["error"]) for row in self.rows])
        self._append()
        for note, (first, *others) in ((note, dict.fromkeys(names)) for note, names in self.notes.items()):
            tqdm.write(f"note: {first}{f' and {len(others)} more' if others else ''}: {note}")
        if self.settings.scales:
            tqdm.write(_surest({mpp: float(np.mean(values)) for mpp, values in self.sure.items() if mpp}))
        return self._table(self.rows)

    def _results(self, name: str, file: Path) -> Iterator[tuple[str, NDArray[np.uint8], Localization]]:
        """What is to be written of a file: the beginning of the name, pixels, localization."""
        predictor, settings = self.predictor, self.settings
        pixels = read_image(file)
        for mpp in settings.scales or (stored_mpp(file) if settings.mpp is None else settings.mpp,):
            answer = predictor.infer(pixels, mpp, tissue=settings.tissue)
            for map_class in [None] if settings.map_class == ALL and answer.maps == 1 else self.classes:
                result = predictor.localize(answer, mpp, threshold=settings.threshold, map_class=map_class)
                parts = [name, *([f"{mpp:g}mpp"] if settings.scales else [])]
                parts += [safe_name(map_class)] if settings.map_class == ALL and map_class else []
                self.sure[mpp].append(float(np.abs(2 * result.roi - 1).mean()))
                yield "_".join(parts), pixels, result

    def _table(self, rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
        columns = next(list(row) for row in self.rows if not row["error"])
        return pd.DataFrame([{**dict.fromkeys(columns, ""), **row} for row in rows])

    def _append(self) -> None:
        """Write the rows that are not in the CSV yet, so that a call that is ended leaves what was done."""
        path, first = self.out / PREDICTIONS, self.written == 0
        try:
            self._table(self.rows[self.written :]).to_csv(path, mode="w" if first else "a", header=first, index=False)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror or error}); choose another place or make room"
            ) from error
        self.written = len(self.rows)


def _surest(sure: Mapping[float, float]) -> str:
    """At which µm/px the maps are surest, from the means of |2p - 1| over their pixels."""
    means = ", ".join(f"{mpp:g}: {value:.2f}" for mpp, value in sure.items())
    best = max(sure, key=lambda mpp: sure[mpp])
    how = f"(mean of |2p - 1| by µm/px: {means})"
    return f"note: maps are surest as {best:g} µm/px {how}; look which fits, and give it by --mpp"


def _write_pictures(out: Path, stem: str, pixels: NDArray[np.uint8], result: Localization) -> None:
    write_mask(out / f"{stem}_mask.png", result.mask)
    write_map(out / f"{stem}_map.png", result.roi)
    write_picture(out / f"{stem}_overlay.png", overlay(pixels, result.roi, result.mask))


def _row(result: Localization) -> dict[str, object]:
    probabilities = [] if result.probabilities is None else zip(result.classes, result.probabilities, strict=True)
    return {
        "class": result.label or "",
        **{f"prob_{name}": round(float(p), 6) for name, p in probabilities},
        "map_class": result.map_class or "",
        "roi_fraction": round(result.roi_fraction, 6),
        "roi_mm2": "" if result.roi_mm2 is None else round(result.roi_mm2, 6),
        "threshold": round(result.threshold, 6),
        "range": result.range or "",
        "mpp": "" if result.mpp is None else result.mpp,
        "scale": result.scale,
    }
