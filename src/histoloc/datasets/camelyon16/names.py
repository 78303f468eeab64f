"""The file names of the published Camelyon16 patches, from which the benchmark can be rebuilt."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Literal

from histoloc.errors import InputError

Kind = Literal["tumour", "mask", "normal"]

_PREFIXES: dict[str, Kind] = {"Patch_file_": "tumour", "mask_Patch_file_": "mask", "mask_file_": "mask"}
_SHARE = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_INTEGER = r"0|[1-9]\d*"  # without leading zeros, so that what is written back is what was read
# The slide's own name may hold any of the words below; matching the whole name leaves the last ones to the patch.
_NAME = re.compile(
    rf"(?P<prefix>{'|'.join(_PREFIXES)})(?P<slide>.+?)"
    rf"(?:_reg_(?P<region>{_INTEGER})_row_(?P<row>{_INTEGER}))?"
    rf"_patch_(?P<patch>{_INTEGER})_x_(?P<x>{_INTEGER})_y_(?P<y>{_INTEGER})"
    rf"_tissue_(?P<tissue>{_SHARE})(?:_metastatic_(?P<tumour>{_SHARE}))?"
    rf"_w_(?P<width>{_INTEGER})_h_(?P<height>{_INTEGER})(?P<suffix>\.[A-Za-z]+)"
)


@dataclass(frozen=True)
class PatchName:
    """What the published name of a patch says.

    Attributes:
        slide: the slide's path relative to the data set, with `-` for `/` (see `slide_key`).
        patch: number of the patch, within its row for a tumour patch, within its slide for a normal one.
        x: left edge in pixels of level 0.
        y: top edge in pixels of level 0.
        tissue_text: share of tissue as written in the name, so that a name is written back as it was read.
        width: width in pixels of level 0.
        height: height in pixels of level 0.
        region: number of the annotation's box; None for a normal patch.
        row: number of the strip within the box; None for a normal patch.
        tumour_text: share of tumour as written in the name; None for a normal patch.
        prefix: what the name begins with: `Patch_file_`, or for masks `mask_Patch_file_` or `mask_file_`.
        suffix: the file's extension.
    """

    slide: str
    patch: int
    x: int
    y: int
    tissue_text: str
    width: int
    height: int
    region: int | None = None
    row: int | None = None
    tumour_text: str | None = None
    prefix: str = "Patch_file_"
    suffix: str = ".png"

    @property
    def kind(self) -> Kind:
        """Whether this names a tumour patch, the mask of one, or a normal patch."""
        return "normal" if self.tumour_text is None else _PREFIXES[self.prefix]

    @property
    def tissue(self) -> float:
        """Share of the patch that is tissue, in [0, 1]."""
        return float(self.tissue_text)

    @property
    def tumour(self) -> float:
        """Share of the patch that is tumour, in [0, 1]; 0 for a normal patch."""
        return 0.0 if self.tumour_text is None else float(self.tumour_text)

    def __str__(self) -> str:
        """Give the file name, without a folder."""
        place = "" if self.region is None else f"_reg_{self.region}_row_{self.row}"
        metastatic = "" if self.tumour_text is None else f"_metastatic_{self.tumour_text}"
        return (
            f"{self.prefix}{self.slide}{place}_patch_{self.patch}_x_{self.x}_y_{self.y}_tissue_{self.tissue_text}"
            f"{metastatic}_w_{self.width}_h_{self.height}{self.suffix}"
        )


def slide_key(path: str) -> str:
    r"""Give the slide's part of a patch name: its path relative to the data set, with `-` for `/` and `\`."""
    return path.replace("\\", "/").replace("/", "-")


def slides_by_key(paths: Iterable[str]) -> dict[str, str]:
    """Relative paths of slides by their key, to find the slide of a patch name; `-` cannot be turned back into `/`.

    Raises:
        InputError: two slides have the same key.
    """
    found: dict[str, str] = {}
    for path in paths:
        key = slide_key(path)
        if found.setdefault(key, path) != path:
            raise InputError(f"{path}: patches of it would be named as those of {found[key]}; rename one slide")
    return found


def tumour_name(
    slide: str, *, region: int, row: int, patch: int, x: int, y: int, tissue: float, tumour: float, width: int,
    height: int, suffix: str = ".png",
) -> PatchName:  # fmt: skip
    """Name a tumour patch; `slide` is the relative path, shares are in [0, 1]."""
    shares = {"tissue_text": _text(tissue), "tumour_text": _text(tumour)}
    return PatchName(
        slide_key(slide), patch, x, y, width=width, height=height, region=region, row=row, suffix=suffix, **shares
    )


def normal_name(
    slide: str, *, patch: int, x: int, y: int, tissue: float, width: int, height: int, suffix: str = ".png"
) -> PatchName:
    """Name a normal patch; `slide` is the relative path, `tissue` is in [0, 1]."""
    return PatchName(slide_key(slide), patch, x, y, _text(tissue), width, height, suffix=suffix)


def _text(share: float) -> str:
    if not 0 <= share <= 1:
        raise ValueError(f"a share is between 0 and 1, not {share}")
    return repr(float(share))


def parse_patch_name(name: str) -> PatchName:
    """Read the published name of a tumour patch, of its mask or of a normal patch.

    Args:
        name: the file's name, with or without folders; `str` of the result gives it back without them.

    Raises:
        InputError: the name is not of the published form, or a share is above 1.
    """
    file = PureWindowsPath(name).name if "\\" in name else PurePosixPath(name).name
    match = _NAME.fullmatch(file)
    if match is None or (match["region"] is None) != (match["tumour"] is None):
        raise InputError(
            f"{name}: is no name of a published patch; expected Patch_file_SLIDE[_reg_R_row_I]_patch_J_x_X_y_Y_"
            f"tissue_F[_metastatic_P]_w_W_h_H.png"
        )
    if float(match["tissue"]) > 1 or float(match["tumour"] or 0) > 1:
        raise InputError(f"{name}: holds a share of tissue or tumour above 1; correct the list of patches")
    if match["tumour"] is None and _PREFIXES[match["prefix"]] == "mask":
        raise InputError(f"{name}: is the mask of a normal patch, which has none; correct the list of patches")
    numbers = {key: int(match[key]) for key in ("patch", "x", "y", "width", "height")}
    if not (numbers["width"] and numbers["height"]):
        raise InputError(f"{name}: names a patch without pixels; correct the list of patches")
    return PatchName(
        match["slide"],
        tissue_text=match["tissue"],
        tumour_text=match["tumour"],
        region=None if match["region"] is None else int(match["region"]),
        row=None if match["row"] is None else int(match["row"]),
        prefix=match["prefix"],
        suffix=match["suffix"],
        **numbers,
    )


def all_ones_f1(names: Iterable[str]) -> float:
    """F1⁺ of the method All-ones, which calls every pixel ROI: the mean of 2p / (1 + p) over tumour patches.

    It needs no image: p, the share of tumour, is in the name. Normal patches have no ROI and do not count;
    masks are passed over, because each belongs to a patch that counts.

    Args:
        names: published names of patches.

    Returns:
        F1⁺ in [0, 1].

    Raises:
        InputError: a name is not of the published form, or none is that of a tumour patch.
    """
    shares = [patch.tumour for patch in map(parse_patch_name, names) if patch.kind == "tumour"]
    if not shares:
        raise InputError("all-ones F1+: no name is that of a tumour patch; give the names with _metastatic_")
    return sum(2 * p / (1 + p) for p in shares) / len(shares)
