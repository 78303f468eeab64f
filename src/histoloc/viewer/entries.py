"""What one model says of one slide or image, as the page shows it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class MapLayer:
    """A map in [0, 1] that lies over a slide, its left upper corner on the slide's.

    Attributes:
        file: a pyramidal TIFF (slides) or a grey picture (images).
        width: in pixels of the map.
        height: in pixels of the map.
        scale: pixels of the slide's level 0 per pixel of the map.
        threshold: where the model cuts it, or None where this is unknown.
    """

    file: Path
    width: int
    height: int
    scale: float
    threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What the page needs; no path is in it."""
        return {"width": self.width, "height": self.height, "scale": self.scale, "threshold": self.threshold}


@dataclass(frozen=True)
class Entry:
    """One slide or image of one model.

    Attributes:
        key: by which an address names it; it changes when the files do.
        model: number of the folder that it is from.
        name: equal names in several folders are shown side by side.
        kind: a whole slide, or a plain image.
        picture: file of the slide or image.
        width: of level 0 in pixels, 0 where unknown.
        height: of level 0 in pixels.
        mpp: micrometres per pixel of level 0, or None.
        given_mpp: what the user said of a slide that does not know its own scale.
        score: by which the list is sorted, in [0, 1], or None.
        score_of: what the score is: the class whose probability it is, or else a few words.
        label: the predicted class, or None.
        probabilities: by class.
        rule: how label and probabilities were made, in a sentence; empty where this is unknown.
        facts: pairs of a name and a value to show, in order.
        map: where the ROI is.
        uncertainty: where the model is unsure.
        regions: GeoJSON of the outlines.
        mask: of the model, from which outlines are drawn where there are no `regions`.
        truth: mask drawn by a person.
        problem: what is wrong with it, empty where nothing is.
    """

    key: str
    model: int
    name: str
    kind: Literal["slide", "image"]
    picture: Path
    width: int = 0
    height: int = 0
    mpp: float | None = None
    given_mpp: float | None = None
    score: float | None = None
    score_of: str = ""
    label: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    rule: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    map: MapLayer | None = None
    uncertainty: MapLayer | None = None
    regions: Path | None = None
    mask: Path | None = None
    truth: Path | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """What the page needs; no path is in it."""
        return {
            "key": self.key,
            "model": self.model,
            "width": self.width,
            "height": self.height,
            "mpp": self.mpp,
            "score": self.score,
            "score_of": self.score_of,
            "label": self.label,
            "probabilities": self.probabilities,
            "rule": self.rule,
            "facts": [list(fact) for fact in self.facts],
            "map": self.map.to_json() if self.map else None,
            "uncertainty": self.uncertainty.to_json() if self.uncertainty else None,
            "regions": self.regions is not None or self.mask is not None,
            "truth": self.truth is not None,
            "problem": self.problem,
        }


def entry_key(*parts: object) -> str:
    """16 hexadecimal digits for a file and its state: they say nothing of where it lies."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def state_of(*files: Path | None) -> tuple[int, ...]:
    """Numbers that change when one of the files does; 0 for a file that is absent."""
    numbers: list[int] = []
    for file in files:
        try:
            status = file.stat() if file else None
        except (OSError, ValueError):  # absent, a name too long, a NUL byte
            status = None
        numbers += [status.st_mtime_ns, status.st_size] if status else [0]
    return tuple(numbers)


def within(folder: Path, name: object) -> Path | None:
    """The file that a JSON or CSV file names in its own folder; None where it is absent or lies elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    try:
        file = (folder / name).resolve()
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
    except (OSError, RuntimeError):  # a name too long, links in a circle
        return None


def number(value: object) -> float | None:
    """A finite number as float, None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
