"""Rows of the report's table, and the footnotes that say what their numbers rest on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoloc.report.evaluation import UNKNOWN_CONTENT, Evaluation
from histoloc.report.read import Run
from histoloc.report.tables import METRICS, headings, percent, results_frame

FLOORS = {"allones": "All-ones", "stain": "Stain (per image)"}  # learn nothing
RANGES = {
    "probability": "evidence that is a probability already",
    "learned": "learned range (affine map and sigmoid, learned on training images without masks)",
    "image": "per-image rule (stretched from least to greatest evidence of each image, or the method's own rule)",
}


@dataclass(frozen=True)
class TableRow:
    """One evaluation of one run as the table shows it; `cells` holds one mapping for each of `headings`."""

    run: str
    method: str
    table: str
    label: str  # of the evaluation
    n_images: int
    threshold: str
    cells: list[dict[str, Any]]
    floors: dict[str, dict[str, float | None]]  # by title of a method that learns nothing: percentages
    notes: list[int]  # 1-based numbers of the footnotes
    published: str  # where the published numbers come from, empty where there are none


def table_rows(runs: Sequence[Run]) -> tuple[list[TableRow], list[str]]:
    """Rows of the report's table and the footnotes that they refer to.

    A footnote names every use of masks: to select the epoch, to set the threshold, by the evaluation itself,
    and every number chosen on the evaluated split (an oracle); and what intervals and PxAP are computed over. Equal
    footnotes are given once.
    """
    frame = results_frame(runs)
    width = len(headings(runs))
    pairs = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    notes: list[str] = []
    rows: list[TableRow] = []
    for run, evaluation in pairs:
        own = frame.iloc[len(rows) * width : (len(rows) + 1) * width]
        mine = footnotes(run, evaluation)
        notes += [note for note in mine if note not in notes]
        rows.append(
            TableRow(
                run=run.name,
                method=run.method,
                table=Path(evaluation.result.table or "").name,
                label=evaluation.label,
                n_images=evaluation.result.n_images,
                threshold=describe_threshold(evaluation),
                cells=own.to_dict("records"),  # pyright: ignore[reportArgumentType]
                floors={FLOORS.get(name, name): values for name, values in evaluation.result.floors.items()},
                notes=sorted(notes.index(note) + 1 for note in mine),
                published=published_source(run, evaluation) if own["published"].notna().any() else "",
            )
        )
    return rows, notes


def footnotes(run: Run, evaluation: Evaluation) -> list[str]:
    """What must be known of the numbers of an evaluation, one sentence each."""
    exceeded = exceeded_by_floors(evaluation)
    notes = [note for text in evaluation.result.notes if (note := sentence(text)) not in exceeded]
    made = [*mask_notes(run, evaluation), *map_notes(evaluation), *pool_notes(evaluation), *notes]
    return list(dict.fromkeys(made))


def exceeded_by_floors(evaluation: Evaluation) -> list[str]:
    """One sentence for each number of a method that learns nothing which is above that of the evaluation."""
    result, found = evaluation.result, []
    for key, what in (("f1_mean", "mean F1"), ("pxap", "PxAP")):
        own = result.metrics.value(key)
        for name, values in result.floors.items():
            low = values.get(key)
            if own is not None and low is not None and low > own:
                title = FLOORS.get(name, name)
                found.append(f"{title}, which learns nothing, has {what} {percent(low)}, above {percent(own)}.")
    return found


def map_notes(evaluation: Evaluation) -> list[str]:
    """How the maps were made and whose they are, at which scale images were seen, and which have no ROI."""
    result = evaluation.result
    notes = [f"Maps: {_and(RANGES.get(name, name) for name in result.range.split(' and '))}."] if result.range else []
    if result.scale:
        counted = [f"{name} ({n} images)" if len(result.scale) > 1 else name for name, n in result.scale.items()]
        notes.append(f"How the network sees images: {', '.join(counted)}.")
    if result.map_class is not None:
        notes.append(f"The maps are those of class {result.map_class}, whatever class is predicted.")
    if result.empty_class is not None:
        notes.append(f"Images of class {result.empty_class} count as images without ROI.")
    if UNKNOWN_CONTENT in evaluation.apart:
        notes.append(
            "An older histoloc did not write down which images it evaluated: compared with no newer evaluation."
        )
    return notes


def mask_notes(run: Run, evaluation: Evaluation) -> list[str]:
    """One sentence for each use of masks that made or chose the numbers of an evaluation."""
    notes = [sentence(text) for text in evaluation.result.uses_masks]
    selection, threshold = run.model.get("selection") or {}, run.model.get("threshold") or {}
    # The evaluation knows best; the model folder is asked only where the evaluation noted nothing.
    if not notes and selection.get("uses_masks"):
        count = selection.get("masks_used") or "an unknown number of"
        notes.append(f"The epoch was chosen on {count} masks (rule {selection.get('rule', 'unknown')}).")
    same_rule = threshold.get("rule") == evaluation.result.threshold.rule
    if not evaluation.result.uses_masks and same_rule and threshold.get("masks_used"):
        notes.append(f"The threshold was chosen on {threshold['masks_used']} masks.")
    oracles = evaluation.result.metrics.oracles.items()
    if known := [text for name, value in oracles if (text := _oracle(name, value))]:
        notes.append(
            f"Oracle on {evaluation.name}, chosen on the evaluated images themselves and therefore no fair "
            f"result, for {run.name}: {', '.join(known)}."
        )
    return list(dict.fromkeys(notes))


def pool_notes(evaluation: Evaluation) -> list[str]:
    """What the intervals resample where it is not single images, and which images PxAP pools where not all have ROI."""
    metrics = evaluation.result.metrics
    notes = [sentence(text) for text in metrics.notes]
    if metrics.resampled == "groups":
        notes.insert(0, f"Intervals: bootstrap over {metrics.groups} groups, all images of a group together.")
    if metrics.pools_without_roi:
        without = f"{metrics.pxap_images_without_roi} of them without ROI (all their pixels are background)"
        notes.append(f"PxAP pools the pixels of all images whose truth is known, {without}.")
    return notes


def resampling(runs: Sequence[Run]) -> str:
    """What the intervals of a table resample, as the end of `95 % bootstrap interval over`."""
    by = {evaluation.result.metrics.resampled for run in runs for evaluation in run.evaluations}
    if by == {"groups"}:
        return "groups of images (patients, slides; see the footnotes)"
    return "images" + (", or over groups of images (patients, slides) where a footnote says so" if len(by) > 1 else "")


def published_source(run: Run, evaluation: Evaluation) -> str:
    """Where the published numbers come from, with a warning where they were measured on another split."""
    source = str(run.published.get("source") or run.settings.get("recipe") or "published")
    source += "; by the per-image rule: compare with the columns per image" if evaluation.result.per_image_rule else ""
    split = str(run.published.get("split") or "test")
    asked = evaluation.result.asked
    if split == evaluation.result.split and asked.threshold is None and asked.map_class is None:
        return source
    return f"{source}; measured on the {split} split, ours on {evaluation.label}: not directly comparable"


def describe_threshold(evaluation: Evaluation) -> str:
    """The threshold's value and rule in words."""
    threshold = evaluation.result.threshold
    value = "per image" if threshold.value is None else f"{threshold.value:.3g}"
    return f"{value} ({threshold.rule})"


def _oracle(name: str, value: Any) -> str:
    """One oracle number in words, empty where it is not defined."""
    key = name.removeprefix("oracle").strip("_")
    number = value.get("value") if isinstance(value, dict) else value
    if not isinstance(number, int | float):
        return ""
    return f"{METRICS[key]} {percent(number)} %" if key in METRICS else f"{key.replace('_', ' ')} {number:.3g}"


def sentence(text: str) -> str:
    """A note as a sentence: with a capital letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _and(words: Iterable[str]) -> str:
    return " and ".join(words)
