"""The rows of the paper's tables: which method with which options, and what was published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Group = Literal["bound", "baseline", "ours"]
DATASETS = {"glas": "GlaS", "camelyon16": "Camelyon16-P512"}


class PublishedRow(NamedTuple):
    """Percentages on a test set; None where the paper has a dash."""

    cl_error: float | None
    f1_plus: float | None
    f1_minus: float | None


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: key of the row and name of its folder.
        title: what tables print.
        method: key of METHODS.
        group: bound (learns nothing, or from masks), baseline, or ours.
        options: of the method; its defaults where absent.
        published: by data set (a key of DATASETS), on the test set.
        learns_from: nothing, labels or masks.
        note: what is particular about the row; a footnote of the table.
    """

    name: str
    title: str
    method: str
    group: Group
    options: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, PublishedRow] = field(default_factory=dict)
    note: str = ""
    learns_from: Literal["nothing", "labels", "masks"] = "labels"


def _published(glas: tuple[float | None, ...], camelyon16: tuple[float | None, ...] | None = None) -> dict[str, Any]:
    found = {"glas": PublishedRow(*glas)}
    return found | ({} if camelyon16 is None else {"camelyon16": PublishedRow(*camelyon16)})


# Belharbi et al., MIDL 2022, Table 1 = TMI 2022, Tables I and II; stain is ours.
TABLE1 = (
    Row(
        "allones",
        "All-ones",
        "allones",
        "bound",
        {},
        _published((None, 66.01, 0.0), (None, 59.44, 0.0)),
        learns_from="nothing",
    ),
    Row(
        "stain",
        "Stain",
        "stain",
        "bound",
        note="Learns nothing: a stain contrast, smoothed and stretched to [0, 1]; not in the paper.",
        learns_from="nothing",
    ),
    Row(
        "pn",
        "PN",
        "pn",
        "baseline",
        {},
        _published((None, 65.52, 24.08), (None, 31.15, 37.36)),
        "The published row's constraints and bounds are not known; these are histoloc's.",
    ),
    Row(
        "erase",
        "ERASE",
        "erase",
        "baseline",
        {},
        _published((7.50, 65.60, 25.01), (8.61, 31.30, 42.48)),
        "The published row's rounds and erased share are not known; these are histoloc's. Every round has all epochs.",
    ),
    Row("maxpool", "Max-pooling", "maxpool", "baseline", {}, _published((1.25, 66.0, 26.32), (10.06, 48.28, 81.92))),
    Row("lse", "CAM-LSE", "lse", "baseline", {}, _published((1.25, 66.05, 27.93), (1.51, 64.31, 63.78))),
    Row("gradcam", "Grad-CAM", "gradcam", "baseline", {}, _published((0.0, 66.30, 21.30), (2.40, 62.78, 79.05))),
    Row("gap", "GAP", "gap", "baseline", {}, _published((0.0, 66.90, 17.88), (2.40, 62.75, 79.05))),
    Row("wildcat", "WILDCAT", "wildcat", "baseline", {}, _published((1.25, 67.21, 22.96), (1.48, 62.73, 72.59))),
    Row("deepmil", "Deep MIL", "deepmil", "baseline", {}, _published((2.50, 68.52, 41.34), (1.93, 59.01, 36.94))),
    Row(
        "maxmin-eem",
        "Max-min (EEM)",
        "maxmin",
        "ours",
        {"background": "eem"},
        _published((0.0, 72.11, 69.07), (6.26, 67.98, 88.80)),
    ),
    Row(
        "maxmin-sem",
        "Max-min (SEM)",
        "maxmin",
        "ours",
        {"background": "sem"},
        _published((0.0, 71.94, 69.23), (6.95, 68.26, 88.55)),
    ),
    Row(
        "unet",
        "U-Net",
        "unet",
        "bound",
        {},
        _published((None, 90.19, 88.52), (None, 71.11, 89.68)),
        "Learns from masks: the upper bound.",
        "masks",
    ),
)

# Belharbi et al., TMI 2022, Table IV (GlaS).
ABLATION = (
    Row(
        "fg",
        "FG only",
        "maxmin",
        "ours",
        {"background": "none", "size": "none"},
        _published((1.25, 71.54, 49.23)),
    ),
    Row(
        "fg-eem",
        "FG + BG (EEM)",
        "maxmin",
        "ours",
        {"background": "eem", "size": "none"},
        _published((1.25, 72.54, 61.82)),
    ),
    Row(
        "fg-eem-asc",
        "FG + BG (EEM) + ASC",
        "maxmin",
        "ours",
        {"background": "eem", "size": "asc"},
        _published((0.0, 72.11, 69.07)),
    ),
    Row(
        "fg-sem",
        "FG + BG (SEM)",
        "maxmin",
        "ours",
        {"background": "sem", "size": "none"},
        _published((1.25, 72.96, 61.95)),
    ),
    Row(
        "fg-sem-asc",
        "FG + BG (SEM) + ASC",
        "maxmin",
        "ours",
        {"background": "sem", "size": "asc"},
        _published((0.0, 71.94, 69.23)),
    ),
)


KINDS = ("table1", "ablation", "methods")


def rows_of(kind: str) -> tuple[Row, ...]:
    """The rows of a table: of Table 1, of the ablation, or every method with its default options.

    Args:
        kind: one of KINDS.
    """
    if kind != "methods":
        return {"table1": TABLE1, "ablation": ABLATION}[kind]
    from histoloc.methods import METHODS  # here, because it needs torch, and a report does not

    def learns(method: Any) -> Any:
        if not method.supervision:
            return "nothing"
        return "masks" if "pixel" in method.supervision else "labels"

    return tuple(
        Row(
            name,
            method.title,
            name,
            "baseline" if learns(method) == "labels" else "bound",
            learns_from=learns(method),
        )
        for name, method in METHODS.items()
    )
