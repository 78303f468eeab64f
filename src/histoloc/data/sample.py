"""One row of a table: an image, or a region of a slide, with its label."""

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
    "testing": "test",
}
REGION = ("x", "y", "width", "height")
OUTLINES = (".xml", ".geojson", ".json")  # files of outlines, which may stand in place of a mask
SEPARATOR = "|"


def parts(label: str) -> tuple[str, ...]:
    """The classes that a cell names: `a|b` is the classes a and b."""
    return tuple(part.strip(string.whitespace) for part in label.split(SEPARATOR))


@dataclass(frozen=True)
class Sample:
    """One image, or one region of a slide, with its label.

    Attributes:
        name: the `image` cell as written, followed by `@x_y_width_height` for a region; unique in its table.
        image: absolute path of the image.
        label: name of the class, or `a|b` for several.
        split: the set that the sample belongs to, or None where the table leaves it open.
        mask: absolute path of the ROI mask, or None.
        group: what must not be on both sides of a split (patient, slide), or None.
        x: left edge of the region in pixels of level 0; None, as the next three, for a whole image.
        y: top edge of the region.
        width: width of the region in pixels.
        height: height of the region in pixels.
        mpp: micrometres per pixel, or None where unknown.
        slide_mpp: micrometres per pixel of the slide's level 0, where the slide does not say it.
        fold: the fold in which it is in the validation set, or None.
    """

    name: str
    image: Path
    label: str
    split: Split | None = None
    mask: Path | None = None
    group: str | None = None
    x: int | None = None
    y: int | None = None
    width: int | None = None
    height: int | None = None
    mpp: float | None = None
    slide_mpp: float | None = None
    fold: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, one or several, in the order of the cell."""
        return parts(self.label)
