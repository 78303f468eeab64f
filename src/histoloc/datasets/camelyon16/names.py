"""The file names of the published Camelyon16 patches, from which the benchmark can be rebuilt."""

import re
from typing import Any, NamedTuple

from histoloc.errors import InputError

_SHARE = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_INTEGER = r"0|[1-9]\d*"  # without leading zeros, so that what is written back is what was read
# The slide's own name may hold any of the words below; matching the whole name leaves the last ones to the patch.
_NAME = re.compile(
    rf"(?P<prefix>(?:mask_)?Patch_file_|mask_file_)(?P<slide>.+?)"
    rf"(?:_reg_(?P<region>{_INTEGER})_row_(?P<row>{_INTEGER}))?"
    rf"_patch_(?P<patch>{_INTEGER})_x_(?P<x>{_INTEGER})_y_(?P<y>{_INTEGER})"
    rf"_tissue_(?P<tissue>{_SHARE})(?:_metastatic_(?P<metastatic>{_SHARE}))?"
    rf"_w_(?P<width>[1-9]\d*)_h_(?P<height>[1-9]\d*)(?P<suffix>\.[A-Za-z]+)"
)
_NUMBERS = ("patch", "x", "y", "width", "height", "region", "row")


class PatchName(NamedTuple):
    """What the published name of a patch says; region, row and metastatic are None for a normal patch.

    Attributes:
        slide: the slide's path relative to the data set, with `-` for `/` (see `slide_key`).
        patch: number of the patch, within its row for a tumour patch, within its slide for a normal one.
        x: left edge in pixels of level 0.
        y: top edge in pixels of level 0.
        tissue: share of tissue, in [0, 1], as the name has it, so that it is written back as it was read.
        width: width in pixels of level 0.
        height: height in pixels of level 0.
        region: number of the annotation's box.
        row: number of the strip within the box.
        metastatic: share of tumour, in [0, 1], as the name has it.
        prefix: what the name begins with: `Patch_file_`, or for masks `mask_Patch_file_` or `mask_file_`.
        suffix: the file's extension.
    """

    slide: str
    patch: int
    x: int
    y: int
    tissue: str
    width: int
    height: int
    region: int | None = None
    row: int | None = None
    metastatic: str | None = None
    prefix: str = "Patch_file_"
    suffix: str = ".png"

    @property
    def label(self) -> str:
        """Name of the class."""
        return "normal" if self.metastatic is None else "tumor"

    @property
    def is_mask(self) -> bool:
        """Whether this is the mask of a patch."""
        return self.prefix.startswith("mask_")

    def __str__(self) -> str:
        """Give the file name, without a folder."""
        place = "" if self.region is None else f"_reg_{self.region}_row_{self.row}"
        metastatic = "" if self.metastatic is None else f"_metastatic_{self.metastatic}"
        return (
            f"{self.prefix}{self.slide}{place}_patch_{self.patch}_x_{self.x}_y_{self.y}_tissue_{self.tissue}"
            f"{metastatic}_w_{self.width}_h_{self.height}{self.suffix}"
        )


def slide_key(path: str) -> str:
    r"""Give the slide's part of a patch name: its path relative to the data set, with `-` for `/` and `\`."""
    return path.replace("\\", "/").replace("/", "-")


def parse_patch_name(name: str) -> PatchName:
    """Read the published name of a tumour patch, of its mask or of a normal patch.

    Args:
        name: the file's name, with or without folders; `str` of the result gives it back without them.

    Raises:
        InputError: the name is not of the published form, or a share is above 1.
    """
    match = _NAME.fullmatch(re.split(r"[/\\]", name)[-1])
    if match is not None:
        cells: dict[str, Any] = match.groupdict()
        cells |= {key: int(cells[key]) for key in _NUMBERS if cells[key] is not None}
        patch = PatchName(**cells)
        is_tumour = patch.metastatic is not None
        small = float(patch.tissue) <= 1 and float(patch.metastatic or 0) <= 1
        if small and is_tumour == (patch.region is not None) and (is_tumour or not patch.is_mask):
            return patch
    raise InputError(
        f"{name}: is no name of a published patch; expected Patch_file_SLIDE[_reg_R_row_I]_patch_J_x_X_y_Y_"
        f"tissue_F[_metastatic_P]_w_W_h_H.png, where F and P are shares up to 1"
    )
