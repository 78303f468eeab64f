"""Many slides: one task for each, and one table over all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from histoloc.data.table_problems import refuse
from histoloc.errors import InputError
from histoloc.inputs import SLIDE_SUFFIXES, Paths, input_files
from histoloc.model_folder import ModelConfig, empty_index, find_model, is_shipped, read_model_config
from histoloc.options import SlideOptions
from histoloc.runner import run_jobs
from histoloc.scale import tile_side
from histoloc.slides.dicom import series_of, slide_mark
from histoloc.work_folder import WORK, atomic_path, locked, read_json

_RESERVED = {"parts", "slides.csv", "failed.csv", "settings.json"}  # what else lies in the out folder


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
    model: Path | str,
    slides: Paths,
    out: Path | str,
    options: SlideOptions | None = None,
    **changes: Any,
) -> Cohort:
    """Predict slides: for each a map, outlines, an answer and a picture, and one table over all.

    A second call with the same options does only what is missing, and goes on in the middle of a slide. A slide that
    was replaced by another of its name is done anew, and so is one whose folder was removed. Several calls may share
    `out` at the same time, as long as they are not at the same slide.

    Args:
        model: a run, a model folder, or the name of a shipped prior, as `prior:glands`.
        slides: files, or folders whose slides are taken (not those of sub-folders, and no hidden files).
        out: folder for `slides.csv` and a folder for each slide.
        options: None takes the defaults.
        changes: single options of `SlideOptions` instead, by name, as `empty_class="normal"`.

    Raises:
        InputError: a model or slide that cannot be used, `out` begun with other options, or no slide that could be
            predicted.
    """
    model, out = Path(model), Path(out).absolute()
    config = read_model_config(model)
    options = resolved(model, config, replace(options or SlideOptions(), **changes))
    # Of a shipped model the name, which each machine finds in its own installation.
    place = model if is_shipped(model) else find_model(model).absolute()
    settings = {"weights_sha256": config.weights_sha256, **options.of_result}
    items = _items(slides, options.slide_mpp)
    # Here, and not above: PyTorch takes seconds to load, and what is wrong should be seen before.
    from histoloc.prediction import choose_device, load
    from histoloc.slide_prediction import predict_slide

    if options.scheduler is None:
        choose_device(options.device)  # once, and not for each slide
    predictor = load(model, "cpu", range=options.range, empty_class=options.empty_class)
    predictor.check(options.threshold, options.map_class)
    _make_way(out, settings, items, options.resume)
    task = partial(predict_slide, model=str(place), options=options, out=str(out))
    result = run_jobs(task, items, out, settings=settings, options=options)
    _write_table(out / "slides.csv", _records(out, settings) | result.results)
    if not result.results:
        refuse(out, [f"{name}: {reason}" for name, reason in result.failed.items()])
    notes = sorted({note for record in result.results.values() for note in record["notes"]})
    return Cohort(cohort_table(result.results), result.failed, (*_scale_notes(config, options), *notes))


def resolved(model: Path, config: ModelConfig, options: SlideOptions) -> SlideOptions:
    """The options with what the model says where they do not."""
    mpp = options.mpp or config.mpp
    if mpp is None:
        raise InputError(
            f"{model}: does not say at how many micrometres per pixel it was trained; give --mpp, the scale of its "
            f"training images"
        )
    empty_class = options.empty_class or config.empty_class
    empty_index(empty_class, config.classes, str(model))
    tile, range = options.tile or tile_side(config), options.range or config.range
    return replace(options, mpp=float(mpp), tile=tile, range=range, empty_class=empty_class)


def _records(out: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What `out` says of the slides that are done with these settings."""
    records = {file.parent.name: _read(file) for file in sorted(out.glob("*/slide.json"))}
    return {name: record for name, record in records.items() if record.get("settings") == settings}


def _write_table(path: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    if records:
        with atomic_path(path) as temporary:
            cohort_table(records).to_csv(temporary, index=False, lineterminator="\n")
    else:
        path.unlink(missing_ok=True)


def cohort_table(records: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row per slide from its slide.json, those with the highest score first.

    Returns:
        Columns slide, name, class, score, prob_<class>, roi_share, roi_mm2, tissue_mm2, regions, largest_mm2, folder.
    """
    rows = [
        {"slide": record["slide"], "name": name, "class": record["class"] or "", "score": record["score"]}
        | {f"prob_{label}": p for label, p in (record["probabilities"] or {}).items()}
        | {"roi_share": record["roi"]["share"], "roi_mm2": record["roi"]["mm2"]}
        | {key: record["roi"][key] for key in ("tissue_mm2", "regions", "largest_mm2")}
        | {"folder": name}
        for name, record in records.items()
    ]
    return pd.DataFrame(rows).round(6).sort_values(["score", "name"], ascending=[False, True], ignore_index=True)


def _items(slides: Paths, slide_mpp: float | None) -> dict[str, dict[str, Any]]:
    """What each task has to know, by the slide's name; without the out folder, so that this may be moved."""
    files = input_files(slides, SLIDE_SUFFIXES, "slide", deep=False)
    first = {series_of(file) or file: name for name, file in reversed(files.items())}  # a DICOM series is one slide
    files = {name: file for name, file in files.items() if name in first.values()}
    for name in _RESERVED & set(files):
        raise InputError(f"{files[name]}: the out folder needs the name {name!r} for itself; rename the slide")
    return {
        name: {"slide": str(file.absolute()), "mark": slide_mark(file), "slide_mpp": slide_mpp, "name": name}
        for name, file in files.items()
    }


def _make_way(out: Path, settings: Mapping[str, Any], items: Iterable[str], resume: bool) -> None:
    """Let be done anew what has to be: a slide without its part is not taken for done.

    Raises:
        InputError: `out` cannot be written, or another call is at one of the slides.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        anew = {name for name in items if not resume or not (out / name / "slide.json").exists()}
        for part in (out / "parts").glob("*.json"):
            if _read(part).get("item", {}).get("name") in anew:
                part.unlink()
        for folder in () if resume else [out / name for name in anew if (out / name).is_dir()]:
            with locked(folder):
                (folder / "slide.json").unlink(missing_ok=True)
                shutil.rmtree(folder / WORK, ignore_errors=True)
        begun = any((out / "parts").glob("*.json")) or any(file.stat().st_size for file in out.glob(f"*/{WORK}/*.bin"))
        # Settings with which nothing was made yet may be mistaken ones. The same ones stay: another call may read them.
        if (not resume or not begun) and _read(out / "settings.json") != settings:
            (out / "settings.json").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error


def _read(file: Path) -> dict[str, Any]:
    """The values of a JSON file; none where it is absent or damaged."""
    with suppress(InputError):
        return read_json(file) or {}
    return {}


def _scale_notes(config: ModelConfig, options: SlideOptions) -> list[str]:
    """Where the network sees tissue at another scale than in training."""
    assert options.mpp is not None
    if config.mpp is None or abs(options.mpp - config.mpp) <= 0.1 * config.mpp:
        return []
    return [
        f"the network was trained at {config.mpp:.3g} µm/px and sees these slides at {options.mpp:.3g}; leave --mpp "
        f"out for results that can be trusted"
    ]
