"""What is said under the table of a benchmark: how its numbers were made, and the footnotes of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from histoloc.benchmark.compare import REPLICATES, Difference, resampled
from histoloc.benchmark.presets import WITH_EMPTY_CLASS
from histoloc.benchmark.published import set_apart
from histoloc.benchmark.results import Bench, Cell
from histoloc.benchmark.rows import Row
from histoloc.report.rows import sentence
from histoloc.report.tables import PXAP_WITH_ROI_HEADING, specificity_heading

SPLITS = {"valid": "validation", "test": "test", "train": "training"}
PER_IMAGE_RULE = (
    "Two rules make a map of evidence e. Ours, learned range: an affine map and a sigmoid, learned on training images "
    "without masks, so that as much of them is ROI as by the per-image rule; the same for every image. Per image: "
    "(e - min)/(max - min) of each image, or the method's own rule, cut at 0.5; no part of the comparison. –: the "
    "method needs no range, or its maps are made per image already."
)


def general(bench: Bench) -> list[str]:
    """What holds for all rows: how the numbers were made."""
    made_of = _count(len(bench.settings["seeds"]), "seed")
    if bench.settings["folds"] != [None]:
        made_of = f"{_count(len(bench.settings['folds']), 'fold')} × {made_of}"
    split = SPLITS.get(bench.split, bench.split)
    said = [
        f"Ours: percentages on the {split} split, mean ± sample standard deviation over n cells "
        f"({made_of}); no ± where n is 1. Bold: the best of a column; bounds (methods that learn nothing, or from "
        "masks) take no part. –: not defined."
    ]
    if common := _setting(bench):
        said.append(common)
    if bench.empty_class is not None:
        said.append(
            f"Images of class {bench.empty_class} have no ROI: F1⁺ leaves them out, so that it cannot see false alarms "
            f"on them; the {specificity_heading([bench.empty_class])} does: mean of the share of the image that is not "
            "marked."
        )
    if counts := " or ".join(map(str, without_roi(bench))):
        said.append(
            f"PxAP pools the pixels of all images whose truth is known, {counts} of them without ROI (all their pixels "
            f"are background); {PXAP_WITH_ROI_HEADING}: the same without these."
        )
    if any(cell.argmax_rule for cell in bench.cells):
        said.append(
            "argmax rule: the published CAM rule, by which a pixel is ROI where the predicted class has the largest "
            "class map; only for methods with class maps, and no part of the comparison."
        )
    said += [PER_IMAGE_RULE] if any(cell.per_image_rule for cell in bench.cells) else []
    if has_published(bench):
        said.append(_published(bench))
    return said


def compared(
    bench: Bench, baseline: Row | None, differences: Mapping[str, Mapping[str, Difference | None]]
) -> list[str]:
    """How the differences to the baseline were made."""
    if baseline is None:
        return []
    kind = "the best label-supervised baseline by mean F1" if baseline.group == "baseline" else "the first row"
    drawn = resampled(differences, {row.name: row.title for row in bench.rows})
    return [
        f"Δ mean F1: difference to {baseline.title}, {kind}, on the images that both have; in brackets "
        f"the 95 % interval of the paired bootstrap over {drawn} ({REPLICATES} resamples; seeds are averaged, "
        "folds pooled)."
    ]


def without_roi(bench: Bench) -> list[int]:
    """How many images without ROI PxAP pools, over the cells; nothing where it pools none."""
    metrics = [cell.evaluation.result.metrics for cell in bench.cells]
    return sorted({m.pxap_images_without_roi for m in metrics if m.pools_without_roi})


def has_published(bench: Bench) -> bool:
    """Whether a data set with published numbers is named."""
    return bench.dataset is not None and any(bench.dataset in row.published for row in bench.rows)


def _published(bench: Bench) -> str:
    """Where the published numbers come from, and which of ours they may be compared with."""
    beside = (
        " Their maps are made by the per-image rule, as ours here." if bench.settings.get("range") == "image" else ""
    )
    if any(cell.per_image_rule for cell in bench.cells):
        argmax = ", of CAM rows also those of the argmax rule" if any(cell.argmax_rule for cell in bench.cells) else ""
        beside = f" Their maps are made by the per-image rule: compare them with the columns per image{argmax}."
    return f"Published: Belharbi et al., MIDL 2022 and IEEE TMI 2022, measured on the test set.{beside}{_apart(bench)}"


def _apart(bench: Bench) -> str:
    split = [] if bench.split == "test" else [f"measured on the {SPLITS.get(bench.split, bench.split)} split"]
    others = [*split, *set_apart(bench)]
    return f" Not directly comparable; ours: {'; '.join(others)}." if others else ""


def _setting(bench: Bench) -> str:
    common = {name: _most_common(of(cell) for cell in bench.cells) for name, of in RULES.items()}
    parts = [f"preset {bench.settings['preset']}"] if bench.settings.get("preset") else []
    epochs = (bench.settings.get("overrides") or {}).get("epochs")
    parts += [f"epochs {epochs} instead of the preset's"] if epochs is not None else []
    parts += [f"{name} {value}" for name, value in common.items() if value]
    asked = bench.settings.get("range")
    parts += [f"all maps by --range {asked}"] if asked else []
    return f"Unless a footnote says otherwise: {', '.join(parts)}." if parts else ""


def _backbone(cell: Cell) -> str:
    backbone = cell.settings.get("backbone") or {}
    if not backbone.get("backbone") or not cell.cost.get("epochs"):
        return ""
    stride = backbone.get("stride")
    return f"{backbone['backbone']} " + (f"cut at stride {stride}" if stride else "with all its layers")


def _selection(cell: Cell) -> str:
    return str((cell.evaluation.result.selection or {}).get("rule") or "")


def _threshold(cell: Cell) -> str:
    threshold = cell.evaluation.result.threshold
    return threshold.rule + (
        f" {threshold.value:g}" if threshold.rule == "fixed" and threshold.value is not None else ""
    )


def _rate(cell: Cell) -> str:
    learns = bool(cell.cost.get("epochs"))
    return f"{cell.settings['training']['lr']:g}" if learns and "training" in cell.settings else ""


RULES: dict[str, Callable[[Cell], str]] = {
    "backbone": _backbone,
    "learning rate": _rate,
    "selection rule": _selection,
    "threshold rule": _threshold,
    "range of maps": lambda cell: cell.evaluation.result.range or "",
}


def _most_common(values: Iterable[str]) -> str:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else ""


def footnotes(bench: Bench) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Numbers of the footnotes by name of the row, and the footnotes; equal ones are given once."""
    common = {name: _most_common(of(cell) for cell in bench.cells) for name, of in RULES.items()}
    notes: list[str] = []
    marked = {}
    for row in bench.rows:
        own = _notes_of(bench, row, common)
        notes += [note for note in own if note not in notes]
        marked[row.name] = tuple(sorted(notes.index(note) + 1 for note in own))
    return marked, notes


def _notes_of(bench: Bench, row: Row, common: Mapping[str, Any]) -> list[str]:
    cells = bench.of(row)
    notes = [row.note] if row.note else []
    for name, of in RULES.items():
        others = sorted({value for cell in cells if (value := of(cell)) and value != common[name]})
        notes += [f"{name.capitalize()}: {', '.join(others)}."] if others else []
    notes += [note for cell in cells if (note := _because_of_empty_class(cell))]
    notes += [sentence(text) for cell in cells for text in cell.evaluation.result.uses_masks]
    finished = {cell.name for cell in cells}
    missing = [name for name in bench.wanted if name not in finished]
    if missing:
        failed = {failure.cell for failure in bench.failures if failure.row.name == row.name}
        named = ", ".join(f"{name} (failed)" if name in failed else name for name in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        notes.append(f"{len(cells)} of {len(bench.wanted)} cells are finished; missing: {named}{more}.")
    return list(dict.fromkeys(notes))


def _because_of_empty_class(cell: Cell) -> str:
    """What a method's options are because a class has no ROI."""
    options = cell.settings.get("options") or {}
    empty = cell.settings.get("empty_class") or options.get("empty_class")
    besides = [f"{name} {options[name]}" for name in WITH_EMPTY_CLASS.get(cell.row.method, {}) if name in options]
    return f"Because images of class {empty} have no ROI: {', '.join(besides)}." if empty and besides else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
