"""`histoloc data`: a data set becomes a table."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

if TYPE_CHECKING:
    from histoloc.datasets.result import TableResult


def tell(result: "TableResult | None") -> None:
    """Tell what a data set became."""
    if result is None:  # help was asked for
        return
    from histoloc.data.table import read_table

    table = read_table(result.table)
    for warning in (*result.warnings, *table.notes):
        print(f"warning: {warning}", file=sys.stderr)
    for item, reason in result.failed.items():
        print(f"failed: {item}: {reason}", file=sys.stderr)
    print("\n".join([table.summary(), *result.remarks, str(result.table)]))
    if result.failed:
        raise SystemExit(1)


app = App(
    name="data",
    help="Turn a data set into a table (CSV); nothing downstream knows where it came from.",
    result_action=tell,
)
# The functions of the data sets are the commands; they are imported when they are called.
for name, function, about in (
    ("glas", "glas:glas_table", "The GlaS challenge's folder -> a table with the published folds, or by patient."),
    ("folder", "folder:folder_table", "One folder of images per class -> a table."),
    ("synthetic", "synthetic.dataset:synthetic_table", "Procedural H&E glands with masks -> images and a table."),
):
    app.command(f"histoloc.datasets.{function}", name=name, help=about)


@app.command
def slides(
    table: Path,
    *,
    out: Path,
    mpp: float,
    size: int = 512,
    stride: int | None = None,
    tissue: float = 0.5,
    roi: float = 0.5,
    empty_class: str | None = None,
    test: float = 0.2,
    valid: float = 0.2,
    seed: int = 0,
    per_slide: int | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    memory_gb: float = 1.0,
) -> None:
    """Your own slides -> a table of tiles, read from the slides on the fly; a second call does only what is missing.

    Slides that fail are listed in failed.csv with their reasons; the table is made without them, the exit code is 1.

    Args:
        table: CSV with the columns slide and label and, optionally, annotation (ASAP XML, GeoJSON), group (patient)
            and mpp (for slides that do not say it); paths are relative to it.
        out: the table to write (CSV); what is done is kept beside it, in a folder that ends in .jobs, with failed.csv.
        mpp: micrometres per pixel of the tiles.
        size: side of a tile in pixels.
        stride: from tile to tile in pixels; by default the size.
        tissue: least share of tissue in a tile.
        roi: least share of annotated area for the label of an annotated slide; tiles without any get the class without
            ROI, what is in between is left out.
        empty_class: name of the class without ROI; by default that of the slides without annotation.
        test: share of groups for the test split, stratified by class.
        valid: share of groups for the validation split.
        seed: of splits and draws.
        per_slide: at most so many tiles of a slide.
        workers: processes; by default one per core.
        scheduler: address of a Dask scheduler to use instead (tcp://host:8786); it must see the same folders.
        memory_gb: a worker process above it is ended, and its slide tried again.
    """
    from histoloc.datasets.tiles import slide_tiles

    made = slide_tiles(
        table,
        out,
        mpp=mpp,
        size=size,
        stride=stride,
        tissue=tissue,
        roi=roi,
        empty_class=empty_class,
        valid=valid,
        test=test,
        seed=seed,
        per_slide=per_slide,
        workers=workers,
        scheduler=scheduler,
        memory_gb=memory_gb,
    )
    _warn(made.warnings)
    for name, reason in made.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(made.summary())
    print(out)
    if made.failed:
        raise SystemExit(1)


@app.command
def camelyon16(
    root: Path,
    *,
    out: Path,
    protocol: Literal["tmi", "own"] = "tmi",
    fold: int = 0,
    seed: int = 0,
    size: int = 512,
    stride: int | None = None,
    mpp: float | None = None,
    p0: float = 0.2,
    p1: float = 0.5,
    tissue: float = 0.1,
    coarse: int = 6,
    patches_from: Path | None = None,
    write: Literal["none", "png", "jpeg"] = "none",
    slide_mpp: float | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    memory_gb: float = 1.0,
) -> None:
    """Camelyon16's slides and annotations -> a table of patches; a second call does only what is missing.

    Slides that fail are listed in failed.csv with their reasons; the table is made without them, the exit code is 1.

    Args:
        root: the folder of the challenge, with training/ and testing/.
        out: folder for table.csv, patches.csv, provenance.json and masks; what is done is kept in its folder work.
        protocol: tmi = as published: holes are tumour, three slides are left out; own = holes are cut out, all slides.
        fold: which of the five slide-level folds is the validation split.
        seed: of the draws.
        size: side of a patch in pixels.
        stride: from patch to patch in pixels; by default the size.
        mpp: micrometres per pixel of the patches; by default level 0 of each slide.
        p0: least share of tumour in a tumour patch.
        p1: of patches with a greater share only some are drawn, in the published proportion.
        tissue: least share of tissue in a patch.
        coarse: normal patches are searched on the slide reduced by 2 to this power.
        patches_from: a published list of patch names (CSV), or a folder of lists, to take instead of sampling.
        write: also write the patches as files, to which the table then points.
        slide_mpp: micrometres per pixel of level 0 of slides that do not say it; the others keep their own.
        workers: processes; by default one per core.
        scheduler: address of a Dask scheduler to use instead (tcp://host:8786); it must see the same folders.
        memory_gb: a worker process above it is ended, and its slide tried again.
    """
    from histoloc.datasets.camelyon16.protocol import Sampling
    from histoloc.datasets.camelyon16.table import camelyon16_table

    made = camelyon16_table(
        root,
        out,
        sampling=Sampling(protocol, size, stride, mpp, p0, p1, tissue, coarse),
        fold=fold,
        seed=seed,
        patches_from=patches_from,
        write=write,
        slide_mpp=slide_mpp,
        workers=workers,
        scheduler=scheduler,
        memory_gb=memory_gb,
    )
    _warn(made.warnings)
    print(made.summary())
    _describe(made.table)
    if made.provenance["failed"]:
        raise SystemExit(1)


def _describe(out: Path) -> None:
    from histoloc.data.table import read_table

    table = read_table(out)
    _warn(table.notes)
    print(table.summary())
    print(out)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
