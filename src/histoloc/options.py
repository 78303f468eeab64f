"""What a command and its function are asked for: each option is declared and documented here, once.

Nothing here loads torch, so that `histoloc --help` is quick.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from histoloc.errors import InputError
from histoloc.types import Range
from histoloc.work_folder import safe_name

ALL = "all"  # as a class: one map of each


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How maps are made and cut.

    Attributes:
        threshold: cut the maps here, from 0 to 1, instead of at the model's threshold.
        range: how evidence becomes a map: probability, learned, or image (stretched in every image, as in the papers;
            not on slides); by default what the model says.
        map_class: the class whose maps are made, or all, for those of each; by default the class that is predicted.
        empty_class: images of this class have no ROI (normal tissue); by default what the model was trained with.
        tissue: where an image is cut into tiles, look at tissue alone, as on slides; --no-tissue looks everywhere.
        device: auto, cpu, cuda, cuda:1, mps.
    """

    threshold: float | None = None
    range: Range | None = None
    map_class: Annotated[str | None, Parameter(name="--class")] = None
    empty_class: str | None = None
    tissue: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        check_threshold(self.threshold)


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(MapOptions):
    """What `predict` is asked for.

    Attributes:
        mpp: micrometres per pixel of the images, which are then seen at the model's scale (in tiles where they are
            larger than training images) and measured in mm²; by default what each file says.
    """

    mpp: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mpp is not None and not 0 < self.mpp < float("inf"):
            raise InputError(f"--mpp {self.mpp} must be above 0 and finite (micrometres per pixel)")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(MapOptions):
    """What `evaluate` is asked for.

    Attributes:
        split: which rows.
        fold: which fold is the validation split; by default the one that the model was trained with, where the table
            has it.
        maps: keep the maps of so many images, evenly spaced, for the report.
        threshold: cut the maps here, from 0 to 1, instead of at the model's threshold (0.5 for heatmaps).
        empty_class: images of this class have no ROI (normal tissue), whatever their masks say; by default what the
            model was trained with.
    """

    split: Literal["train", "valid", "test"] = "test"
    fold: int | None = None
    maps: int = 200

    @property
    def name(self) -> str:
        """Of the evaluation's folder: the split, and what is not the default."""
        parts = [self.split]
        parts += [] if self.threshold is None else [f"threshold{self.threshold:g}"]
        parts += [] if self.range is None else [self.range]
        parts += [] if self.map_class is None else [f"map-{self.map_class}"]
        parts += [] if self.empty_class is None else [f"empty-{self.empty_class}"]
        parts += [] if self.tissue else ["no-tissue"]
        return safe_name("-".join(parts))


def check_threshold(threshold: float | None) -> None:
    """Refuse a threshold that no map can be cut at.

    Raises:
        InputError: it lies outside [0, 1].
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--threshold {threshold} must lie within [0, 1]")
