"""What the commands that cut slides are asked for, each option with its bounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from histoloc.bounds import Checked, Count, PartBelowOne, Positive, Share, ShareAboveNone, Whole
from histoloc.errors import InputError
from histoloc.types import Origin


@dataclass(frozen=True, kw_only=True)
class TileOptions(Checked):
    """Which tiles are cut from one's own slides.

    Attributes:
        mpp: micrometres per pixel of the tiles.
        size: side of a tile in pixels.
        stride: from tile to tile in pixels; by default the size.
        tissue: least share of tissue in a tile.
        roi: least share of annotated area for the label of an annotated slide; tiles without any get the class without
            ROI, what is in between is left out.
        roi_class: a class of outlines that is ROI; may be given several times. By default every one but holes (_2,
            normal, Exclusion), Ignore*, Region*, other names with a star, and outlines without a class around others;
            where several are left, they have to be named.
        hole_class: a class of outlines that is cut out of the ROI; may be given several times.
        origin: where coordinates of outlines begin, if the scanner left a margin (MRXS, SCN): bounds, of what was
            scanned, as in QuPath; or level0, of the whole level, as in OpenSlide. By default bounds in GeoJSON and
            level0 in XML.
        empty_class: name of the class without ROI; by default that of the slides without annotation.
        test: share of groups for the test split, stratified by class.
        valid: share of groups for the validation split.
        seed: of splits and draws.
        per_slide: at most so many tiles of a slide.
        columns: what the list calls its columns, as slide=file,label=diagnosis, where not so.
    """

    mpp: Positive
    size: Count = 512
    stride: Count | None = None
    tissue: Share = 0.5
    roi: ShareAboveNone = 0.5
    roi_class: tuple[str, ...] = ()
    hole_class: tuple[str, ...] = ()
    origin: Origin | None = None
    empty_class: str | None = None
    test: PartBelowOne = 0.2
    valid: PartBelowOne = 0.2
    seed: Whole = 0
    per_slide: Count | None = None
    columns: str = ""


@dataclass(frozen=True)
class Sampling(Checked):
    """What is sampled from Camelyon16, the same for all slides.

    Attributes:
        protocol: tmi = as published: vertices are rounded, outlines drawn along, holes are tumour, three slides are
            left out; own = a pixel is tumour if its centre is, holes are cut out, all slides are used.
        size: side of a patch in pixels.
        stride: from patch to patch in pixels; by default the size.
        mpp: micrometres per pixel of the patches; by default level 0 of each slide, whatever its scale.
        p0: least share of tumour in a tumour patch.
        p1: of patches with a greater share only some are drawn, in the published proportion.
        tissue: least share of tissue in a patch.
        coarse: normal patches are searched on the slide reduced by 2 to this power.
    """

    protocol: Literal["tmi", "own"] = "tmi"
    size: Annotated[Count, Field(ge=32)] = 512
    stride: Count | None = None
    mpp: Positive | None = None
    p0: ShareAboveNone = 0.2
    p1: Share = 0.5
    tissue: Share = 0.1
    coarse: Annotated[Whole, Field(le=12)] = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p0 > self.p1:
            raise InputError(f"p0 {self.p0:g}: is above p1 {self.p1:g}; give shares with p0 <= p1")

    @property
    def step(self) -> int:
        """Pixels from patch to patch."""
        return self.stride or self.size


@dataclass(frozen=True)
class CamelyonOptions(Checked):
    """What is made of the slides of Camelyon16.

    Attributes:
        fold: which of the five slide-level folds is the validation split.
        seed: of calibration and of the draw of normal patches.
        patches_from: a published list of patch names (CSV), or a folder of lists, to take instead of sampling.
        write: also write the patches as files, to which the table then points.
        slide_mpp: micrometres per pixel of level 0 of slides that do not say it; the others keep their own.
    """

    fold: Whole = 0
    seed: Whole = 0
    patches_from: Path | None = None
    write: Literal["none", "png", "jpeg"] = "none"
    slide_mpp: Positive | None = None
