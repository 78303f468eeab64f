"""What the user of a benchmark chooses, and the settings that all its methods share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from histoloc.benchmark.rows import shipped
from histoloc.types import Range

# `input` and `training` of each.
PRESETS: dict[str, Mapping[str, Any]] = shipped("benchmark/presets")


@dataclass(frozen=True)
class Choices:
    """What a benchmark is asked for.

    Attributes:
        data: the table (CSV).
        out: the benchmark's folder; a second call with it goes on where the first was stopped, also with more rows,
            folds or seeds.
        folds: which folds of the table are, one after the other, the validation split: 0-4, or 0,2, or none; by
            default all of the table, or none where it has none.
        seeds: of training: 0-2, or 0,5.
        rows: names of rows, such as gap,maxmin-sem; by default all of the table.
        preset: paper = the published settings for GlaS; fast = images at half size, fewer epochs; camelyon16 = the
            published settings for Camelyon16-P512, patches as they are.
        workers: cells that run side by side; by default one per GPU, one on a CPU. Cells share the cores; with another
            number of threads (OMP_NUM_THREADS) the last bits of a result may differ.
        devices: auto, cpu, or GPU numbers such as 0,1, which the workers take in turns.
        split: which rows of the table are measured; auto = test where there are any, else valid.
        epochs: instead of the preset's.
        backbone: any timm model name, instead of each method's own.
        stride: input pixels per feature position, instead of each method's own.
        weights: embedded, hub, none, or a file; instead of each method's own.
        maps: of so many images per cell, evenly spaced, maps and masks are kept for the report.
        range: how evidence becomes a map: probability, learned or image; by default each method's own. The numbers of
            the papers' per-image rule stand beside in any case.
        empty_class: images of this class have no ROI (normal tissue): every row is trained and measured so.
        published: the data set whose published numbers stand beside ours: glas, camelyon16, or none; by default glas
            where the table's file name says so, else none.
    """

    data: Path
    out: Path
    folds: str | None = None
    seeds: str = "0"
    rows: str | None = None
    preset: Literal["paper", "fast", "camelyon16"] = "paper"
    workers: int | None = None
    devices: str = "auto"
    split: Literal["auto", "test", "valid"] = "auto"
    epochs: int | None = None
    backbone: str | None = None
    stride: int | None = None
    weights: str | None = None
    maps: int = 200
    empty_class: str | None = None
    published: Literal["glas", "camelyon16", "none"] | None = None
    range: Range | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """What is given instead of the preset's and the methods' own settings."""
        chosen = {name: getattr(self, name) for name in ("epochs", "backbone", "stride", "weights")}
        return {name: value for name, value in chosen.items() if value is not None}
