"""What is said under the table of a benchmark: how its numbers were made, and the footnotes of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from histoloc.benchmark.compare import REPLICATES, Differences, resampled
from histoloc.benchmark.published import set_apart
from histoloc.benchmark.results import Bench, Cell
from histoloc.benchmark.rows import Row
from histoloc.report.rows import sentence

SPLITS = {"valid": "validation", "test": "test", "train": "training"}
PER_IMAGE_RULE = (
    "Two rules make a map of evidence e. Ours, learned range: an affine map and a sigmoid, learned on training images "
    "without masks, so that as much of them is ROI as by the per-image rule; the same for every image. Per image: "
    "(e - min)/(max - min) of each image, or the method's own rule, cut at 0.5; no part of the comparison. –: the "
    "method needs no range, or its maps are made per image already."
)
ARGMAX_RULE = (
    "argmax rule: the published CAM rule, by which a pixel is ROI where the predicted class has the largest class map; "
    "only for methods with class maps, and no part of the comparison."
)


def general(bench: Bench, baseline: Row | None, differences: Differences) -> list[str]:
    """What holds for all rows: how the numbers and the differences to the baseline were made."""
    seeds, folds = len(bench.settings["seeds"]), len(bench.settings["folds"])
    made_of = (
        f"{folds} fold{'s' * (folds > 1)} × " * (bench.settings["folds"] != [None]) + f"{seeds} seed{'s' * (seeds > 1)}"
    )
    said = [
        f"Ours: percentages on the {SPLITS.get(bench.split, bench.split)} split, mean ± sample standard deviation over "
        f"n cells ({made_of}); no ± where n is 1. Bold: the best of a column; bounds (methods that learn nothing, or "
        "from masks) take no part. –: not defined."
    ]
    settings = bench.settings
    epochs = (settings.get("overrides") or {}).get("epochs")
    parts = [f"preset {settings['preset']}"] if settings.get("preset") else []
    parts += [f"epochs {epochs} instead of the preset's"] if epochs is not None else []
    parts += [f"{name} {value}" for name, value in _common(bench).items() if value]
    parts += [f"all maps by --range {settings['range']}"] if settings.get("range") else []
    said += [f"Unless a footnote says otherwise: {', '.join(parts)}."] if parts else []
    if bench.empty_class is not None:
        said.append(
            f"Images of class {bench.empty_class} have no ROI: F1⁺ leaves them out, so that it cannot see false alarms "
            f"on them; the specificity on {bench.empty_class} images does: mean of the share of the image that is not "
            "marked."
        )
    metrics = [cell.result.metrics for cell in bench.cells]
    if counts := sorted({m.pxap_images_without_roi for m in metrics if m.pools_without_roi}):
        said.append(
            f"PxAP pools the pixels of all images whose truth is known, {' or '.join(map(str, counts))} of them "
            "without ROI (all their pixels are background); PxAP, images with ROI: the same without these."
        )
    said += [ARGMAX_RULE] if any(cell.result.argmax_rule for cell in bench.cells) else []
    said += [PER_IMAGE_RULE] if any(cell.result.per_image_rule for cell in bench.cells) else []
    said += [_published(bench)] if has_published(bench) else []
    if baseline is not None:
        kind = "the best label-supervised baseline by mean F1" if baseline.group == "baseline" else "the first row"
        drawn = resampled(differences, {row.name: row.title for row in bench.rows})
        said.append(
            f"Δ mean F1: difference to {baseline.title}, {kind}, on the images that both have; in brackets "
            f"the 95 % interval of the paired bootstrap over {drawn} ({REPLICATES} resamples; seeds are averaged, "
            "folds pooled)."
        )
    return said


def has_published(bench: Bench) -> bool:
    """Whether a data set with published numbers is named."""
    return bench.dataset is not None and any(bench.dataset in row.published for row in bench.rows)


def _published(bench: Bench) -> str:
    """Where the published numbers come from, and which of ours they may be compared with."""
    text = "Published: Belharbi et al., MIDL 2022 and IEEE TMI 2022, measured on the test set."
    if any(cell.result.per_image_rule for cell in bench.cells):
        argmax = any(cell.result.argmax_rule for cell in bench.cells)
        text += " Their maps are made by the per-image rule: compare them with the columns per image"
        text += ", of CAM rows also those of the argmax rule." if argmax else "."
    elif bench.settings.get("range") == "image":
        text += " Their maps are made by the per-image rule, as ours here."
    split = [] if bench.split == "test" else [f"measured on the {SPLITS.get(bench.split, bench.split)} split"]
    others = [*split, *set_apart(bench)]
    return text + (f" Not directly comparable; ours: {'; '.join(others)}." if others else "")


def _backbone(cell: Cell) -> str:
    backbone = cell.settings.get("backbone") or {}
    if not backbone.get("backbone") or not cell.cost.get("epochs"):
        return ""
    stride = backbone.get("stride")
    return f"{backbone['backbone']} " + (f"cut at stride {stride}" if stride else "with all its layers")


def _threshold(cell: Cell) -> str:
    threshold = cell.result.threshold
    fixed = threshold.rule == "fixed" and threshold.value is not None
    return f"{threshold.rule} {threshold.value:g}" if fixed else threshold.rule


def _rate(cell: Cell) -> str:
    learns = bool(cell.cost.get("epochs"))
    return f"{cell.settings['training']['lr']:g}" if learns and "training" in cell.settings else ""


RULES: dict[str, Callable[[Cell], str]] = {
    "backbone": _backbone,
    "learning rate": _rate,
    "selection rule": lambda cell: str((cell.result.selection or {}).get("rule") or ""),
    "threshold rule": _threshold,
    "range of maps": lambda cell: cell.result.range or "",
}


def _common(bench: Bench) -> dict[str, str]:
    """What most cells have of RULES; empty where none says."""

    def most(values: Iterable[str]) -> str:
        return next((value for value, _ in Counter(filter(None, values)).most_common(1)), "")

    return {name: most(of(cell) for cell in bench.cells) for name, of in RULES.items()}


def footnotes(bench: Bench, row: Row) -> list[str]:
    """What is particular about a row: its own note, what differs from most cells, masks, and what is missing."""
    cells, common = bench.of(row), _common(bench)
    notes = [row.note] if row.note else []
    for name, of in RULES.items():
        others = sorted({value for cell in cells if (value := of(cell)) and value != common[name]})
        notes += [f"{name.capitalize()}: {', '.join(others)}."] if others else []
    notes += [note for cell in cells if (note := _because_of_empty_class(row, cell.settings))]
    notes += [sentence(text) for cell in cells for text in cell.result.uses_masks]
    missing = [name for name in bench.wanted if name not in {cell.name for cell in cells}]
    if missing:
        failed = {failure.cell for failure in bench.failures if failure.row.name == row.name}
        named = ", ".join(f"{name} (failed)" if name in failed else name for name in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        notes.append(f"{len(cells)} of {len(bench.wanted)} cells are finished; missing: {named}{more}.")
    return list(dict.fromkeys(notes))


def _because_of_empty_class(row: Row, settings: dict[str, Any]) -> str:
    """What a method's options are because a class has no ROI."""
    options = settings.get("options") or {}
    empty = settings.get("empty_class") or options.get("empty_class")
    if not empty:
        return ""
    from histoloc.methods import METHODS  # here, because it needs torch, and other reports do not

    needs = METHODS[row.method].with_empty_class
    besides = [f"{name} {options[name]}" for name in needs if name in options]
    return f"Because images of class {empty} have no ROI: {', '.join(besides)}." if besides else ""
