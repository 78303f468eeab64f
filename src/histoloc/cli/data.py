"""`histoloc data`: a data set becomes a table."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App

if TYPE_CHECKING:
    import pandas as pd

app = App(name="data", help="Turn a data set into a table (CSV); nothing downstream knows where it came from.")


@app.command
def glas(
    root: Path,
    *,
    out: Path,
    split: Literal["official", "patient"] = "official",
    seed: int = 0,
    folds: int = 5,
) -> None:
    """The GlaS challenge's folder -> a table with the published folds, or with patient-disjoint splits.

    Args:
        root: the folder that holds train_1.bmp ... and Grade.csv, or its parent.
        out: the table to write (CSV).
        split: official = train/test of the challenge and the five published folds (patients are shared between them);
            patient = no patient on two sides.
        seed: of the patient split.
        folds: number of folds of the patient split.
    """
    from histoloc.datasets.glas import glas_table

    rows, warnings = glas_table(root, split=split, seed=seed, folds=folds)
    _write(out, rows, warnings, notes=split != "official")  # its own warning says the same


@app.command
def folder(
    root: Path,
    *,
    out: Path,
    masks: Path | None = None,
    test: float = 0.2,
    valid: float = 0.2,
    seed: int = 0,
    mpp: float | None = None,
    group: str | None = None,
) -> None:
    """One folder of images per class -> a table.

    A folder `a|b` holds images of both classes.

    Args:
        root: holds one folder per class, or train/valid/test folders that hold them.
        out: the table to write (CSV).
        masks: parallel folder of masks (same relative names), used only to evaluate.
        test: share of images for the test split, stratified by class.
        valid: share of images for the validation split.
        seed: of the random splits.
        mpp: micrometres per pixel of the images, for areas in mm².
        group: keep patients or slides together: a regular expression that is searched for in each image's path below
            root; its first group, or all that it matches, is the patient or slide. Splits are made of whole groups.
    """
    from histoloc.data.groups import torn_names
    from histoloc.datasets.folder import folder_table

    rows = folder_table(root, masks=masks, test=test, valid=valid, seed=seed, mpp=mpp, group=group)
    paths = [Path(image).relative_to(root.absolute()).as_posix() for image in rows["image"]]
    _write(out, rows, [] if group else torn_names(paths, rows["label"].tolist(), rows["split"].tolist()))


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


@app.command
def synthetic(
    *,
    out: Path,
    count: int = 400,
    seed: int = 0,
    height: int = 256,
    width: int = 320,
    scene: Literal["glands", "disc"] = "glands",
) -> None:
    """Procedural H&E glands with instance masks, or a simpler scene -> images and a table.

    Args:
        out: folder for images, masks and table.csv.
        count: number of images, half of each class.
        seed: the same seed gives the same bytes.
        height: pixels.
        width: pixels.
        scene: glands, or disc: one striped disc on noise decides the class, so that the best map is known.
    """
    from histoloc.datasets.synthetic.writing import generate

    _describe(generate(out, count=count, seed=seed, height=height, width=width, scene=scene))


def _write(out: Path, rows: "pd.DataFrame", warnings: Iterable[str] = (), *, notes: bool = True) -> None:
    from histoloc.data.table import write_table

    _warn(warnings)
    write_table(out, rows)
    _describe(out, notes=notes)


def _describe(out: Path, *, notes: bool = True) -> None:
    from histoloc.data.table import read_table

    table = read_table(out)
    _warn(table.notes if notes else ())
    print(table.summary())
    print(out)


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
