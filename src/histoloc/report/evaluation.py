"""One evaluation: what makes it the same as another one, and what it is called beside others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from histoloc.report.metrics_file import MetricsFile

SPLITS = ("test", "valid", "train")
UNKNOWN_CONTENT = "content unknown"


class Key(NamedTuple):
    """What was evaluated and how, whatever the run and its weights: only equal keys may be compared.

    `content` is None where an old histoloc did not write it down. `empty_class` is the one by which the truth was made,
    named in the call or by the model.
    """

    table: str
    content: str | None
    split: str
    threshold: float | None
    range: str | None
    map_class: str | None
    empty_class: str | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One split of one table, evaluated: metrics.json, per_image.csv and the folder that they lie in.

    Attributes:
        folder: of the files.
        result: metrics.json.
        images: one row per image; the columns of per_image.csv, or no row where it is absent.
        apart: what else tells it from others of a report, which `tell_apart` finds.
        of_table: file name of its table, where a report has several.
    """

    folder: Path
    result: MetricsFile
    images: pd.DataFrame
    apart: tuple[str, ...] = ()
    of_table: str = ""

    @property
    def split(self) -> str:
        """Name of the split, `all` where the table has none; with its fold where folds have other images."""
        name = self.result.split or "all"
        same_images = self.result.fold is None or name in ("test", "all")
        return name if same_images else f"{name}, fold {self.result.fold}"

    @property
    def key(self) -> Key:
        """Only evaluations with equal keys may be compared."""
        asked = self.result.asked
        return Key(
            self.result.table or "",
            asked.content,
            self.split,
            asked.threshold,
            asked.range,
            asked.map_class,
            self.result.empty_class,
        )

    @property
    def label(self) -> str:
        """The split, and what is not the default: `test, cut at 0.40, --range image`."""
        asked = self.result.asked
        parts = [self.split]
        parts += [] if asked.threshold is None else [f"cut at {_decimals(asked.threshold)}"]
        parts += [] if asked.range is None else [f"--range {asked.range}"]
        parts += [] if asked.map_class is None else [f"map of {asked.map_class}"]
        parts += [] if asked.empty_class is None else [f"no ROI in {asked.empty_class}"]
        return ", ".join([*parts, *self.apart])

    @property
    def name(self) -> str:
        """The label, with the table where a report has several."""
        return f"{self.label} of {self.of_table}" if self.of_table else self.label


def tell_apart(runs: Sequence[Sequence[Evaluation]], weights: Sequence[str | None]) -> list[tuple[Evaluation, ...]]:
    """The evaluations of every run, those of equal labels that may not be compared with what tells them apart.

    Args:
        runs: the evaluations of each.
        weights: SHA-256 of each run's weights as they are now; None where unknown.

    Returns:
        As many, with `apart` and `of_table`; labels are unique among the evaluations of a run and table.
    """
    plain = [[replace(e, apart=(), of_table="") for e in evaluations] for evaluations in runs]
    tables = {e.result.table or "" for evaluations in plain for e in evaluations}
    alike: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in (e for evaluations in plain for e in evaluations):
        alike.setdefault((evaluation.result.table or "", evaluation.label), []).append(evaluation)
    made = []
    for evaluations, own in zip(plain, weights, strict=True):
        named = [
            replace(
                e,
                apart=_apart(e, alike[e.result.table or "", e.label], own),
                of_table=Path(e.result.table or "").name if len(tables) > 1 else "",
            )
            for e in evaluations
        ]
        count = Counter((e.result.table, e.label) for e in named)
        made.append(
            tuple(
                replace(e, apart=(*e.apart, f"in {e.folder.name}")) if count[e.result.table, e.label] > 1 else e
                for e in named
            )
        )
    return made


def _apart(evaluation: Evaluation, alike: Sequence[Evaluation], weights: str | None) -> tuple[str, ...]:
    """What tells an evaluation from those of the same table and label, and from one of its run as it is now."""
    result, asked = evaluation.result, evaluation.result.asked
    parts = []
    if asked.empty_class is None and result.empty_class and len({e.result.empty_class for e in alike}) > 1:
        parts.append(f"no ROI in {result.empty_class}")
    if len({e.result.asked.content for e in alike}) > 1:
        parts.append(f"content {asked.content[:8]}" if asked.content else UNKNOWN_CONTENT)
    if weights and asked.weights_sha256 and asked.weights_sha256 != weights:
        parts.append("earlier weights")
    return tuple(parts)


def _decimals(value: float) -> str:
    """At least two decimals, and as many as the value has."""
    return f"{value:.2f}" if round(value, 2) == value else f"{value}"
