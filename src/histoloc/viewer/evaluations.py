"""Runs and folders that `histoloc evaluate` writes, as entries of the viewer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from histoloc.data.images import image_size
from histoloc.errors import InputError
from histoloc.report.evaluation import Evaluation
from histoloc.report.read import locate, read_run
from histoloc.viewer.entries import Entry, MapLayer, entry_key, number, state_of


def is_evaluation(folder: Path) -> bool:
    """Whether a model was measured in this folder."""
    return bool(_metrics_files(folder))


def evaluation_title(folder: Path) -> str:
    """Name of the method."""
    method = read_run(folder).method
    return "" if method == "–" else method


def evaluation_state(folder: Path) -> tuple[int, ...]:
    """Numbers that change when the folder is evaluated again."""
    return state_of(*_metrics_files(folder), *(file.with_name("per_image.csv") for file in _metrics_files(folder)))


def read_evaluations(folder: Path, model: int) -> list[Entry]:
    """One entry for each image of each evaluation; maps are there of those that the evaluation kept.

    An image of an evaluation with the defaults has its own name; of any other one, what is not the default is added:
    `a.png (test, cut at 0.40)`.

    Raises:
        InputError: metrics.json or per_image.csv is broken.
    """
    entries: dict[str, Entry] = {}
    for evaluation in read_run(folder).evaluations:
        for row in evaluation.images.to_dict("records"):
            entry = _entry(evaluation, {str(name): value for name, value in row.items()}, model)
            if evaluation.label != evaluation.split or entry.name in entries:
                entry = replace(entry, name=f"{entry.name} ({evaluation.name})")
            entries[entry.name] = entry
    return list(entries.values())


def _metrics_files(folder: Path) -> list[Path]:
    found = sorted((folder / "evaluation").glob("*/metrics.json"))
    return found or [file for file in (folder / "metrics.json",) if file.is_file()]


def _entry(evaluation: Evaluation, row: dict[str, Any], model: int) -> Entry:
    folder, stem = evaluation.folder, str(row["file"])
    picture, truth = locate(evaluation, row["image"]), locate(evaluation, row["mask"])
    kept = {name: _kept(folder, f"{stem}_{name}.png") for name in ("map", "mask")} if stem else {}
    probabilities = {
        name.removeprefix("prob_"): p
        for name, value in row.items()
        if name.startswith("prob_") and (p := number(value)) is not None
    }
    label = str(row["predicted"]) or None
    width, height, problem = _size(picture)
    map_file = kept.get("map")
    threshold = number(row["threshold"])
    if threshold is None:
        threshold = evaluation.result.threshold.value
    return Entry(
        key=entry_key(folder.absolute(), model, row["name"], *state_of(picture, truth, *kept.values())),
        model=model,
        name=str(row["name"]),
        kind="image",
        picture=picture or folder,
        width=width,
        height=height,
        score=max(probabilities.values(), default=None),
        score_of=label or "",
        label=label,
        probabilities=probabilities,
        facts=(("Evaluation", evaluation.name), *_facts(row)),
        map=MapLayer(map_file, width, height, 1.0, threshold) if map_file and width else None,
        mask=kept.get("mask"),
        truth=truth if truth is not None and truth.is_file() else None,
        problem=problem,
    )


def _kept(folder: Path, name: str) -> Path | None:
    """A file that the evaluation kept; a name with folders in it was not written by it."""
    file = folder / "images" / name
    return file if Path(name).name == name and file.is_file() else None


def _size(picture: Path | None) -> tuple[int, int, str]:
    if picture is None:
        return 0, 0, "the image was not kept; evaluate again with more maps kept"
    try:
        return *image_size(picture), ""
    except InputError as error:
        return 0, 0, str(error)


def _facts(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    facts: list[tuple[str, str]] = [("True class", str(row["label"]))] if row["label"] else []
    for name, column, factor in (
        ("F1⁺", "f1_plus", 1),
        ("F1⁻", "f1_minus", 1),
        ("ROI of image", "roi_fraction", 100),
        ("True ROI", "true_fraction", 100),
    ):
        if (value := number(row[column])) is not None:
            facts.append((name, f"{factor * value:.1f} %"))
    return tuple(facts)
