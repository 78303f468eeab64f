"""What the user of a benchmark chooses, and the settings that all its methods share."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from histoloc.benchmark.rows import shipped
from histoloc.bounds import Checked, Count, Whole
from histoloc.errors import InputError
from histoloc.types import Range

# `input` and `training` of each.
PRESETS: dict[str, Mapping[str, Any]] = shipped("benchmark/presets")


@dataclass(frozen=True)
class Choices(Checked):
    """What a benchmark is asked for.

    Attributes:
        data: the table (CSV).
        out: the benchmark's folder; a second call with it goes on where the first was stopped, also with more rows,
            folds or seeds.
        columns: what the table calls its columns, as image=path,label=diagnosis, where not so.
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
        results: a file of finished cells as text: those that OUT lacks are taken from it, and it is written anew.
        range: how evidence becomes a map: probability, learned or image; by default each method's own. The numbers of
            the papers' per-image rule stand beside in any case.
        empty_class: images of this class have no ROI (normal tissue): every row is trained and measured so.
        published: the data set whose published numbers stand beside ours: glas, camelyon16, or none; by default glas
            where the table's file name says so, else none.
    """

    data: Path
    out: Path = Path("bench")
    folds: str | None = None
    seeds: str = "0"
    rows: str | None = None
    preset: Literal["paper", "fast", "camelyon16"] = "paper"
    workers: Count | None = None
    devices: str = "auto"
    split: Literal["auto", "test", "valid"] = "auto"
    epochs: Count | None = None
    backbone: str | None = None
    stride: Whole | None = None
    weights: str | None = None
    maps: Whole = 200
    empty_class: str | None = None
    published: Literal["glas", "camelyon16", "none"] | None = None
    range: Range | None = None
    results: Path | None = None
    columns: str = ""

    @property
    def overrides(self) -> dict[str, Any]:
        """What is given instead of the preset's and the methods' own settings."""
        chosen = {name: getattr(self, name) for name in ("epochs", "backbone", "stride", "weights")}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def of_prior(self) -> dict[str, Any]:
        """What is said of priors."""
        return {}


@dataclass(frozen=True)
class MapChoices(Choices):
    """What a benchmark of tiers of supervision is asked for.

    Attributes:
        preset: what rows without a prior share: paper = the published settings for GlaS; fast = images at half size,
            fewer epochs; camelyon16 = the published settings for Camelyon16-P512, patches as they are.
        prior: the prior of seed 0: one that is shipped, a run or a model folder.
        priors: the priors of the other seeds: FOLDER/seed1, FOLDER/seed2, as `histoloc prior make --seed 1 --out
            FOLDER/seed1` makes them.
        looked_at: folds whose held-out images somebody looked at who drew the prior's scene, or none: the others are
            reported apart too; by default 0-2 where the published data set is glas.
    """

    preset: Literal["paper", "fast", "camelyon16"] = "fast"
    prior: str = "prior:glands"
    priors: Path | None = None
    looked_at: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_numbers(self.looked_at or "none", "--looked-at")

    @property
    def of_prior(self) -> dict[str, Any]:
        """What is said of priors."""
        priors = None if self.priors is None else self.priors.as_posix()
        return {"prior": self.prior, "priors": priors, "looked_at": self.looked_at}

    def prior_of(self, seed: int) -> Path:
        """The prior of the cells with this seed.

        Raises:
            InputError: there is none; the message names the command that makes it.
        """
        if seed == 0:
            return Path(self.prior)
        folder = (self.priors or Path("priors")) / f"seed{seed}"
        made = f"`histoloc prior make --seed {seed} --out {folder}` makes it in about a quarter of an hour on two cores"
        if self.priors is None:
            raise InputError(f"--seeds {self.seeds}: needs a prior of seed {seed}; {made}: then give --priors priors")
        if not any((folder / part / "config.json").is_file() for part in ("", "model")):
            raise InputError(f"--priors {self.priors}: has no prior seed{seed}; {made}")
        return folder


@dataclass(frozen=True)
class PictureOptions(Checked):
    """Which pictures are written.

    Attributes:
        row: of this row, a third of the images each that are best, median and worst by the mean of F1⁺ and F1⁻; by
            default the row with the highest mean F1 among those without masks.
        worst_of: of this row the worst images, in a folder of their own; by default the one that is measured as it is.
        folds: held-out images of these folds, as 0-2; none for a table without folds.
        seed: of the cells.
        count: how many images of each.
    """

    row: str | None = None
    worst_of: str | None = None
    folds: str = "0-2"
    seed: Whole = 0
    count: Count = 12


def parse_numbers(text: str, flag: str) -> tuple[int | None, ...]:
    """`0-2,5` -> (0, 1, 2, 5); `none` -> (None,). Sorted, each number once.

    Raises:
        InputError: anything else.
    """
    if text.strip().lower() == "none":
        return (None,)
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip(), re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first > 9999:
            raise InputError(f"{flag} {text}: cannot be understood at {part.strip()!r}; write 0-4, or 0,2, or none")
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))
