"""The table of runs: a row for each evaluation, and the footnotes that say what its numbers rest on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from histoloc.report.tables import METRICS, Entry, Line, Table, best, headings, interval, percent
from histoloc.results import UNKNOWN_CONTENT, Evaluation, Metric, Result, Run, results_frame

COLUMNS = (*METRICS, "per_image_f1_plus", "per_image_f1_minus")
FLOORS = {"allones": "All-ones", "stain": "Stain (per image)"}  # learn nothing
RANGES = {
    "probability": "evidence that is a probability already",
    "learned": "learned range (affine map and sigmoid, learned on training images without masks)",
    "image": "per-image rule (stretched from least to greatest evidence of each image, or the method's own rule)",
}


def runs_table(runs: Sequence[Run], title: str = "") -> Table:
    """The table of every evaluation of runs, published numbers below each, at the end methods that learn nothing.

    Args:
        runs: what `histoloc.results.read_runs` returned.
        title: its caption.

    Returns:
        The table. A footnote names every use of masks: to select the epoch, to set the threshold, by the evaluation
        itself, and every number chosen on the evaluated split (an oracle); and what intervals and PxAP are computed
        over. Bold is the best among evaluations of equal keys.
    """
    pairs = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    columns = headings([evaluation.result for _, evaluation in pairs], COLUMNS)
    bold = best(
        results_frame(runs).reindex(columns=list(columns)),
        [repr(evaluation.key) for _, evaluation in pairs],
        [f"{run.name}/{evaluation.result.request.weights_sha256}" for run, evaluation in pairs],
    )
    rows: list[Line] = []
    floors: dict[str, Line] = {}  # equal ones of the same images once, below all runs
    for number, (run, evaluation) in enumerate(pairs):
        result, group = evaluation.result, str(number)
        about = (evaluation.name, str(result.n_images), _threshold(result))
        cells = [Entry(run.method, result.tier), *map(Entry, about)]
        for name in columns:
            metric = result.numbers.get(name, Metric())
            best_one = bool(bold[name].iloc[number])
            cells.append(Entry(percent(metric.value), interval(metric.low, metric.high), best_one))
        rows.append(Line(run.name, cells, group, footnotes(run, evaluation)))
        published = {name: value for name, value in run.published.items() if name in columns}
        if published:
            cells = [Entry()] * 4 + _numbers(published, columns)
            rows.append(Line("published", cells, group, [published_source(run, evaluation)], aside=True))
        for name, values in result.floors.items():
            cells = [Entry(), Entry(evaluation.name), Entry(str(result.n_images)), Entry(), *_numbers(values, columns)]
            line = Line(f"learns nothing: {FLOORS.get(name, name)}", cells, "floors", aside=True)
            floors.setdefault(repr((name, evaluation.key, cells)), line)
    rows += floors.values()
    heads = [("", name) for name in ("Method", "Evaluation", "Images", "Threshold")]
    return Table(title, [*heads, *columns.values()], rows, corner="Run")


def _numbers(values: Mapping[str, float | None], columns: Iterable[str]) -> list[Entry]:
    return [Entry(percent(values[key]) if key in values else "") for key in columns]


def footnotes(run: Run, evaluation: Evaluation) -> list[str]:
    """What must be known of the numbers of an evaluation, one sentence each."""
    exceeded = exceeded_by_floors(evaluation.result)
    notes = [note for text in evaluation.result.notes if (note := sentence(text)) not in exceeded]
    lines = [*_mask_notes(run, evaluation), *_map_notes(evaluation), *_pool_notes(evaluation.result), *notes]
    return list(dict.fromkeys(lines))


def exceeded_by_floors(result: Result) -> list[str]:
    """One sentence for each number of a method that learns nothing which is above that of the evaluation."""
    notes = []
    for key in ("f1_mean", "pxap"):
        own = result.value(key)
        for name, values in result.floors.items():
            floor = values.get(key)
            if own is not None and floor is not None and floor > own:
                what = f"has {METRICS[key]} {percent(floor)}, above {percent(own)}."
                notes.append(f"{FLOORS.get(name, name)}, which learns nothing, {what}")
    return notes


def _map_notes(evaluation: Evaluation) -> list[str]:
    """How the maps were made and whose they are, at which scale images were seen, and which have no ROI."""
    result, notes = evaluation.result, []
    if result.range:
        notes.append(f"Maps: {' and '.join(RANGES.get(name, name) for name in result.range.split(' and '))}.")
    if result.scale:
        counted = [f"{name} ({n} images)" if len(result.scale) > 1 else name for name, n in result.scale.items()]
        notes.append(f"How the network sees images: {', '.join(counted)}.")
    if result.map_class is not None:
        notes.append(f"The maps are those of class {result.map_class}, whatever class is predicted.")
    if result.empty_class is not None:
        notes.append(f"Images of class {result.empty_class} count as images without ROI.")
    if UNKNOWN_CONTENT in evaluation.details:
        notes.append(
            "An older histoloc did not write down which images it evaluated: compared with no newer evaluation."
        )
    return notes


def _mask_notes(run: Run, evaluation: Evaluation) -> list[str]:
    """One sentence for each use of masks that made or chose the numbers of an evaluation."""
    result = evaluation.result
    notes = [sentence(text) for text in result.uses_masks]
    if not notes:  # the evaluation knows best; the model folder is asked only where the evaluation noted nothing
        selection, threshold = run.model.get("selection") or {}, run.model.get("threshold") or {}
        if selection.get("uses_masks"):
            count = selection.get("masks_used") or "an unknown number of"
            notes.append(f"The epoch was chosen on {count} masks (rule {selection.get('rule', 'unknown')}).")
        if threshold.get("rule") == result.threshold.rule and threshold.get("masks_used"):
            notes.append(f"The threshold was chosen on {threshold['masks_used']} masks.")
    oracles = {name.removeprefix("oracle_"): of.value for name, of in result.numbers.items() if "oracle_" in name}
    if known := [_oracle(name, value) for name, value in oracles.items() if value is not None]:
        notes.append(
            f"Oracle on {evaluation.name}, chosen on the evaluated images themselves and therefore no fair "
            f"result, for {run.name}: {', '.join(known)}."
        )
    return notes


def _pool_notes(result: Result) -> list[str]:
    """What the intervals resample where it is not single images, and which images PxAP pools where not all have ROI."""
    metrics = result.metrics
    notes = [sentence(text) for text in metrics.notes]
    if metrics.resampled == "groups" and metrics.groups != 1:  # a note of the evaluation says it of one group
        notes.insert(0, f"Intervals: bootstrap over {metrics.groups} groups, all images of a group together.")
    if result.pools_without_roi:
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
    source += (
        "; by the per-image rule: compare with the columns per image"
        if evaluation.result.value("per_image_f1_plus") is not None
        else ""
    )
    split = str(run.published.get("split") or "test")
    request = evaluation.result.request
    if split == evaluation.result.split and request.threshold is None and request.map_class is None:
        return f"Published: {source}."
    return f"Published: {source}; measured on the {split} split, ours on {evaluation.label}: not directly comparable."


def sentence(text: str) -> str:
    """A note as a sentence: with a capital letter and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _threshold(result: Result) -> str:
    value = "per image" if result.threshold.value is None else f"{result.threshold.value:.3g}"
    return f"{value} ({result.threshold.rule})"


def _oracle(name: str, value: float) -> str:
    return f"{METRICS[name]} {percent(value)} %" if name in METRICS else f"{name.replace('_', ' ')} {value:.3g}"
