"""What a command and its function are asked for: each option is declared and documented here, once.

Nothing here loads torch, so that `histoloc --help` is quick.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import TypeAdapter, ValidationError

from histoloc.errors import InputError
from histoloc.runner import JobOptions
from histoloc.types import Range
from histoloc.work_folder import safe_name

SMALLEST_TILE, TILE_STEP = 32, 16  # pixels of the working scale
# Of slides: with what they are predicted, and not what comes out. Their own scale is kept for each slide.
_MEANS = {*JobOptions.__dataclass_fields__, "batch", "device", "readers", "resume", "slide_mpp"}
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
        scales: where nobody knows it: look at each image as if it had each of these µm/px; the results of each have
            names and rows of their own.
    """

    mpp: float | None = None
    scales: Annotated[tuple[float, ...], Parameter(consume_multiple=True, show_default=False)] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, mpp in [("mpp", self.mpp), *(("scales", scale) for scale in self.scales)]:
            check_mpp(mpp, name)
        if self.mpp is not None and self.scales:
            raise InputError("--mpp says at which scale images are, --scales that nobody knows it; leave one out")


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
        heatmap_max: which number means 1 in heatmaps of whole numbers; by default 255 in those of 8 bits, 65535 in
            those of 16.
    """

    split: Literal["train", "valid", "test"] = "test"
    fold: int | None = None
    maps: int = 200
    heatmap_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heatmap_max is not None and not 0 < self.heatmap_max < math.inf:
            raise InputError(f"--heatmap-max {self.heatmap_max:g}: give the number that means 1, above 0")
        if self.maps < 0:
            raise InputError(f"--maps {self.maps} must be at least 0; correct it")

    @property
    def name(self) -> str:
        """Of the evaluation's folder: the split, and what is not the default."""
        parts = [self.split]
        parts += [] if self.threshold is None else [f"threshold{self.threshold:g}"]
        parts += [] if self.range is None else [self.range]
        parts += [] if self.map_class is None else [f"map-{self.map_class}"]
        parts += [] if self.empty_class is None else [f"empty-{self.empty_class}"]
        parts += [] if self.tissue else ["no-tissue"]
        parts += [] if self.heatmap_max is None else [f"max{self.heatmap_max:g}"]
        return safe_name("-".join(parts))


@dataclass(frozen=True, kw_only=True)
class SlideOptions(JobOptions, MapOptions):
    """What `slides predict` is asked for.

    Attributes:
        mpp: micrometres per pixel at which tiles are read; by default the model's own.
        slide_mpp: micrometres per pixel of level 0, where the slides do not say it.
        tile: side of a tile in pixels of that scale, a multiple of 16; by default as large as the model's training
            images, at most 512.
        overlap: share of a tile that its neighbour sees too, from 0 to 0.9.
        map_class: the class whose maps are made, or all, for those of each in a folder of its own in OUT; by default
            the class that each slide is given.
        tissue: look at tissue alone; --no-tissue looks everywhere.
        min_area_mm2: smaller regions get no outline, mm²; the map and its areas keep them.
        precision: of the network; auto = bf16 on a GPU that has it, float32 elsewhere.
        batch: tiles at a time; by default 2 on a CPU and 16 elsewhere.
        readers: threads that read tiles; by default half as many as there are cores, at most 8.
        workers: processes, one slide each. 1 works in this one, where nothing guards against running out of memory.
        resume: go on with what OUT has; --no-resume does its slides anew.
    """

    mpp: float | None = None
    slide_mpp: float | None = None
    tile: int | None = None
    overlap: float = 0.25
    min_area_mm2: Annotated[float, Parameter(name="--min-area")] = 0.001
    precision: Literal["auto", "float32", "bf16"] = "auto"
    batch: int | None = None
    readers: int | None = None
    resume: bool = True
    workers: int | None = 1
    retries: int = 1
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.range == "image":
            raise InputError(
                "--range image: stretches every image to its own least and greatest evidence, so that each tile of a "
                "slide would show ROI and no two could be compared; leave --range out"
            )
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise InputError(f"--mpp {self.mpp:g}: give a positive number of micrometres per pixel")
        if self.tile is not None and (self.tile < SMALLEST_TILE or self.tile % TILE_STEP):
            # Of a prime number of pixels, for one, nothing but the whole tile could be a cell of the map.
            nearest = max(SMALLEST_TILE, round(self.tile / TILE_STEP) * TILE_STEP)
            raise InputError(
                f"--tile {self.tile}: give a multiple of {TILE_STEP} from {SMALLEST_TILE} up, as {nearest}"
            )
        if not 0 <= self.overlap <= 0.9:
            raise InputError(f"--overlap {self.overlap:g}: give the share of a tile's side, from 0 to 0.9")
        if not 0 <= self.min_area_mm2 < math.inf:
            raise InputError(f"--min-area {self.min_area_mm2:g}: give an area in mm² from 0 up")
        for name, number in (("--batch", self.batch), ("--readers", self.readers)):
            if number is not None and number < 1:
                raise InputError(f"{name} {number}: give a whole number from 1")
        if self.scheduler is not None and not re.fullmatch(r"([a-z]+://)?.+:[0-9]+", self.scheduler):
            raise InputError(f"--scheduler {self.scheduler}: give an address with a port, as tcp://host:8786")

    @property
    def of_result(self) -> dict[str, Any]:
        """The options on which the result depends."""
        return {name: value for name, value in vars(self).items() if name not in _MEANS}


def check_mpp(mpp: float | None, name: str = "mpp") -> None:
    """Refuse a scale that no image can have; `name` is that of the option.

    Raises:
        InputError: it is not above 0 and finite.
    """
    if mpp is not None and not 0 < mpp < math.inf:
        raise InputError(f"--{name} {mpp} must be above 0 and finite (micrometres per pixel)")


def check_threshold(threshold: float | None) -> None:
    """Refuse a threshold that no map can be cut at.

    Raises:
        InputError: it lies outside [0, 1].
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--threshold {threshold} must lie within [0, 1]")


def check_options(options: Any) -> None:
    """Check a dataclass against the bounds that its fields declare.

    Raises:
        InputError: names the first option that is outside.
    """
    try:
        TypeAdapter(type(options)).validate_python(vars(options))
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise InputError(f"--{flag} {first['input']} is wrong ({first['msg']}); correct it") from error
