"""What a command and its function are asked for: each option is declared and documented here, once.

Nothing here loads torch, so that `histoloc --help` is quick.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import Field

from histoloc.bounds import Checked, Count, NotNegative, Number, Positive, Share, Whole
from histoloc.errors import InputError
from histoloc.runner import JobOptions
from histoloc.types import Origin, Range
from histoloc.work_folder import safe_name

SMALLEST_TILE, TILE_STEP = 32, 16  # pixels of the working scale
# Of slides: with what they are predicted, and not what comes out. Their own scale is kept for each slide.
_MEANS = {*JobOptions.__dataclass_fields__, "batch", "device", "readers", "resume", "slide_mpp"}
ALL = "all"  # as a class: one map of each


@dataclass(frozen=True, kw_only=True)
class MapOptions(Checked):
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

    threshold: Share | None = None
    range: Range | None = None
    map_class: Annotated[str | None, Parameter(name="--class")] = None
    empty_class: str | None = None
    tissue: bool = True
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(MapOptions):
    """What `predict` is asked for.

    Attributes:
        mpp: micrometres per pixel of the images, which are then seen at the model's scale (in tiles where they are
            larger than training images) and measured in mm²; by default what each file says.
        scales: where nobody knows it: look at each image as if it had each of these µm/px; the results of each have
            names and rows of their own.
    """

    mpp: Positive | None = None
    scales: Annotated[tuple[Positive, ...], Parameter(consume_multiple=True, show_default=False)] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mpp is not None and self.scales:
            raise InputError("--mpp says at which scale images are, --scales that nobody knows it; leave one out")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(MapOptions):
    """What `evaluate` is asked for.

    Attributes:
        split: which rows; by default test, or all where the table names no splits and the model saw none of its images.
        fold: which fold is the validation split; by default the one that the model was trained with, where the table
            has it.
        columns: what the table calls its columns, as image=path,label=diagnosis, where not so.
        maps: keep the maps of so many images, evenly spaced, for the report.
        threshold: cut the maps here, from 0 to 1, instead of at the model's threshold (0.5 for heatmaps).
        empty_class: images of this class have no ROI (normal tissue), whatever their masks say; by default what the
            model was trained with.
        heatmap_max: which number means 1 in heatmaps of whole numbers; by default 255 in those of 8 bits, 65535 in
            those of 16.
    """

    split: Literal["train", "valid", "test", "all"] | None = None
    fold: Whole | None = None
    columns: str = ""
    maps: Whole = 200
    heatmap_max: Positive | None = None

    @property
    def name(self) -> str:
        """Of the evaluation's folder: the split, and what is not the default."""
        parts = [self.split or "test"]
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
        origin: where coordinates begin, of maps and outlines too, where a scanner left a margin (MRXS, SCN): bounds, of
            what was scanned, as in QuPath; or level0, of the whole level, as in OpenSlide.
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

    mpp: Positive | None = None
    slide_mpp: Positive | None = None
    origin: Origin = "bounds"
    tile: Count | None = None
    overlap: Annotated[Share, Field(le=0.9)] = 0.25
    min_area_mm2: Annotated[NotNegative, Parameter(name="--min-area")] = 0.001
    precision: Literal["auto", "float32", "bf16"] = "auto"
    batch: Count | None = None
    readers: Count | None = None
    resume: bool = True
    workers: Count | None = 1
    retries: Whole = 1
    memory_gb: Annotated[Number, Field(ge=0.1)] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.range == "image":
            raise InputError(
                "--range image: stretches every image to its own least and greatest evidence, so that each tile of a "
                "slide would show ROI and no two could be compared; leave --range out"
            )
        if self.tile is not None and (self.tile < SMALLEST_TILE or self.tile % TILE_STEP):
            # Of a prime number of pixels, for one, nothing but the whole tile could be a cell of the map.
            nearest = max(SMALLEST_TILE, round(self.tile / TILE_STEP) * TILE_STEP)
            raise InputError(
                f"--tile {self.tile}: give a multiple of {TILE_STEP} from {SMALLEST_TILE} up, as {nearest}"
            )
        if self.scheduler is not None and not re.fullmatch(r"([a-z]+://)?.+:[0-9]+", self.scheduler):
            raise InputError(f"--scheduler {self.scheduler}: give an address with a port, as tcp://host:8786")

    @property
    def of_result(self) -> dict[str, Any]:
        """The options on which the result depends."""
        return {name: value for name, value in vars(self).items() if name not in _MEANS}
