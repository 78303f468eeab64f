"""`histoloc slides`: look at whole slides."""

import sys
from pathlib import Path
from typing import Literal

from cyclopts import App

from histoloc.cli.options import ClassOption, RangeOption
from histoloc.work_folder import safe_name

app = App(name="slides", help="Whole slides: what a file holds, where its tissue is, and what a model says of it.")


@app.command
def info(slide: Path, *, mpp: float | None = None, properties: bool = False) -> None:
    """Size, micrometres per pixel and levels of a slide.

    Args:
        slide: a format of OpenSlide, or a TIFF, PNG or JPEG.
        mpp: micrometres per pixel of level 0, where the file does not say it.
        properties: also all that the scanner wrote.
    """
    from histoloc.slides.reader import describe, open_slide

    with open_slide(slide, mpp=mpp) as opened:
        found = describe(opened)
    levels, written = found.pop("levels"), found.pop("properties")
    for number, level in enumerate(levels):
        found[f"level {number}"] = f"{level['width']} x {level['height']} px, {level['mpp']:.4g} µm/px"
    for name, value in (found | (written if properties else {})).items():
        print(f"{name:12} {value}")


@app.command
def tissue(slide: Path, *, out: Path, at: float = 8.0, mpp: float | None = None) -> None:
    """A thumbnail with the outline of the tissue that would be cut into patches.

    Args:
        slide: a format of OpenSlide, or a TIFF, PNG or JPEG.
        mpp: micrometres per pixel of level 0, where the file does not say it.
        out: the picture (.png, .jpg).
        at: micrometres per pixel at which tissue is looked for, and of the picture.
    """
    from histoloc.data.images import write_picture
    from histoloc.slides.reader import open_slide
    from histoloc.slides.tissue import tissue as find
    from histoloc.slides.tissue import tissue_picture

    with open_slide(slide, mpp=mpp) as opened:
        mask = find(opened, mpp=at)
        picture = tissue_picture(opened, mask)
        mm2 = opened.width * opened.height * (opened.mpp / 1000) ** 2 * float(mask.mean())
    write_picture(out, picture)
    print(f"tissue on {100 * float(mask.mean()):.1f} % of the slide, {mm2:.2f} mm²")
    print(out)


@app.command
def predict(
    model: Path,
    slides: list[Path],
    /,
    *,
    out: Path,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    batch: int | None = None,
    threshold: float | None = None,
    empty_class: str | None = None,
    range: RangeOption = None,
    class_: ClassOption = None,
    tissue: bool = True,
    min_area: float = 0.001,
    precision: Literal["auto", "float32", "bf16"] = "auto",
    device: str = "auto",
    readers: int | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    memory_gb: float = 4.0,
    resume: bool = True,
) -> None:
    """Find the ROI on whole slides: map, outlines for QuPath, answer and picture of each, and one table over all.

    OUT gets slides.csv (a row per slide, the highest score first) and for each slide a folder with map.ome.tif,
    uncertainty.ome.tif, regions.geojson, slide.json, tiles.csv and overview.png; `histoloc view OUT` shows them. A
    second call does only what is missing, and goes on in the middle of a slide; calls for other slides may share OUT
    at the same time. Exit code 1: some slides failed, see failed.csv; 2: none could be done.

    Args:
        model: a run or a model folder.
        slides: slides, or folders of them.
        out: folder for the results.
        mpp: micrometres per pixel at which tiles are read; by default the model's own.
        slide_mpp: micrometres per pixel of level 0, where the slides do not say it.
        tile: side of a tile in pixels of that scale, a multiple of 16; by default as large as the model's training
            images, at most 512.
        overlap: share of a tile that its neighbour sees too, from 0 to 0.9.
        batch: tiles at a time; by default 2 on a CPU and 16 elsewhere.
        threshold: cut the map here, from 0 to 1, instead of where the model says.
        empty_class: the class without ROI (normal tissue); by default what the model was trained with.
        range: how evidence becomes a map: probability or learned; by default what the model says. image, the per-image
            rule of the papers, is refused: every tile would show ROI.
        class_: make the maps of this class, or of all, each in a folder of its own in OUT; by default those of the
            class that each slide is given.
        tissue: look at tissue alone; --no-tissue looks everywhere.
        min_area: smaller regions get no outline, mm²; the map and its areas keep them.
        precision: of the network; auto = bf16 on a GPU that has it, float32 elsewhere.
        device: auto, cpu, cuda, cuda:1, mps.
        readers: threads that read tiles; by default half as many as there are cores, at most 8.
        workers: processes, one slide each.
        scheduler: address of a Dask scheduler to use instead (tcp://host:8786); it must see the same folders.
        memory_gb: with several workers, one above it is ended and its slide tried again.
        resume: go on with what OUT has; --no-resume does its slides anew.
    """
    from histoloc.map_class import classes_of
    from histoloc.slide_maps.cohort import predict_slides

    failed = False
    for name in classes_of(model, empty_class) if class_ == "all" else [class_]:
        place = out / safe_name(str(name)) if class_ == "all" else out
        made = predict_slides(
            model,
            slides,
            place,
            mpp=mpp,
            slide_mpp=slide_mpp,
            tile=tile,
            overlap=overlap,
            batch=batch,
            threshold=threshold,
            empty_class=empty_class,
            range=range,
            map_class=name,
            tissue=tissue,
            min_area_mm2=min_area,
            precision=precision,
            device=device,
            readers=readers,
            workers=workers,
            scheduler=scheduler,
            memory_gb=memory_gb,
            resume=resume,
        )
        for note in made.notes:
            print(f"note: {note}", file=sys.stderr)
        print(made.table[["name", "class", "score", "roi_mm2", "roi_share", "regions"]].to_string(index=False))
        print(place / "slides.csv")
        for slide, reason in made.failed.items():
            print(f"failed: {slide}: {reason}", file=sys.stderr)
        failed = failed or bool(made.failed)
    if failed:
        raise SystemExit(1)
