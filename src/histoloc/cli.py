"""The command line: each command calls one function and adds nothing."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from histoloc.errors import InputError

app = App(
    name="histoloc",
    help="Weakly-supervised localization in histology: train on image labels, get class, region and certainty.",
    version_flags=["--version"],
)
data_app = App(name="data", help="Turn a data set into a table (CSV); nothing downstream knows where it came from.")
app.command(data_app)
app.command("histoloc.cli_train:app", name="train", help="Train a method; `histoloc train METHOD --help` lists all.")
app.command("histoloc.cli_slides:app", name="slides", help="Whole slides: what a file holds, and where its tissue is.")
app.command("histoloc.cli_benchmark:app", name="benchmark", help="Every row of Table 1, or the ablation; resumable.")

Runs = Annotated[list[Path], Parameter(allow_leading_hyphen=False)]


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what the user did wrong ends with one sentence and exit code 2."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (InputError, CycloptsError) as error:
        print(f"histoloc: {' '.join(str(error).split(chr(10)))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("histoloc: interrupted; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None


@app.command
def quickstart(out: Path = Path("quickstart"), *, seed: int = 0, count: int = 240, epochs: int | None = None) -> None:
    """Synthetic glands -> train max-min, GAP and all-ones -> evaluate -> report.html, in under five minutes.

    Args:
        out: folder for images, runs and report; a second call goes on where the first was stopped.
        seed: of the images and of training.
        count: number of images.
        epochs: of each training; by default what the recipe says.
    """
    from histoloc.quickstart import quickstart as run

    run(out, seed=seed, count=count, epochs=epochs)


@data_app.command(name="glas")
def data_glas(
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
    from histoloc.data.glas import glas_table

    rows, warnings = glas_table(root, split=split, seed=seed, folds=folds)
    _write(out, rows, warnings)


@data_app.command(name="folder")
def data_folder(
    root: Path,
    *,
    out: Path,
    masks: Path | None = None,
    test: float = 0.2,
    valid: float = 0.2,
    seed: int = 0,
    mpp: float | None = None,
) -> None:
    """One folder of images per class -> a table.

    Args:
        root: holds one folder per class, or train/valid/test folders that hold them.
        out: the table to write (CSV).
        masks: parallel folder of masks (same relative names), used only to evaluate.
        test: share of images for the test split, stratified by class.
        valid: share of images for the validation split.
        seed: of the random splits.
        mpp: micrometres per pixel of the images, for areas in mm².
    """
    from histoloc.data.folder import folder_table

    _write(out, folder_table(root, masks=masks, test=test, valid=valid, seed=seed, mpp=mpp), [])


@data_app.command(name="slides")
def data_slides(
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

    Args:
        table: CSV with the columns slide and label and, optionally, annotation (ASAP XML, GeoJSON), group (patient)
            and mpp (for slides that do not say it); paths are relative to it.
        out: the table to write (CSV); what is done is kept beside it, in a folder that ends in .jobs.
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
    from histoloc.data.slides import slide_tiles

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
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(made.summary())
    print(out)


@data_app.command(name="camelyon16")
def data_camelyon16(
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
    from histoloc.data.camelyon16 import camelyon16_table
    from histoloc.data.table import read_table
    from histoloc.slides.protocol import Sampling

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
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(made.summary())
    print(read_table(made.table).counts().to_string())
    print(made.table)
    if made.provenance["failed"]:
        raise SystemExit(1)


@data_app.command(name="synthetic")
def data_synthetic(
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
    from histoloc.data.synthetic import generate

    print(generate(out, count=count, seed=seed, height=height, width=width, scene=scene))


@app.command
def evaluate(
    source: Path,
    *,
    data: Path,
    split: Literal["train", "valid", "test"] = "test",
    fold: int | None = None,
    threshold: float | None = None,
    out: Path | None = None,
    maps: int = 200,
    empty_class: str | None = None,
    device: str = "auto",
) -> None:
    """Measure a model, or a folder of anybody's heatmaps, on one split of a table.

    Args:
        source: a run, a model folder, or a folder with one heatmap per image (STEM.npy, .png or .tif, in [0, 1]).
        data: the table (CSV).
        split: which rows.
        fold: which fold is the validation split; by default the one the model was trained with.
        threshold: cut the maps here instead of at the model's threshold.
        out: folder for the results; by default evaluation/SPLIT in the run.
        maps: keep the maps of so many images, evenly spaced, for the report.
        empty_class: images of this class have no ROI (normal tissue), also without a mask file; by default what the
            model was trained with.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    from histoloc.evaluate import evaluate as run
    from histoloc.evaluate import summary_line

    result = run(
        source,
        data,
        split=split,
        fold=fold,
        threshold=threshold,
        out=out,
        maps=maps,
        empty_class=empty_class,
        device=device,
    )
    print(summary_line(result))


@app.command
def predict(
    model: Path,
    images: Runs,
    *,
    out: Path,
    mpp: float | None = None,
    threshold: float | None = None,
    device: str = "auto",
) -> None:
    """Localize in images: mask, heatmap and overlay of each, and one CSV with class, probabilities and ROI area.

    Args:
        model: a run or a model folder.
        images: image files, or folders of them.
        out: folder for the results.
        mpp: micrometres per pixel of the images; gives areas in mm².
        threshold: cut the maps here instead of at the model's threshold.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    from histoloc.predict import predict_files

    predict_files(model, images, out, mpp=mpp, threshold=threshold, device=device)
    print(out / "predictions.csv")


@app.command
def report(runs: Runs, *, out: Path | None = None, title: str | None = None, images: str | None = None) -> None:
    """One self-contained HTML page over runs, or over a benchmark: table with intervals, figure, curves, settings.

    Args:
        runs: runs, or folders that `histoloc evaluate` wrote; or one folder that `histoloc benchmark` wrote.
        out: the page; by default report.html here, or in the benchmark's folder.
        title: its headline.
        images: which images a benchmark's figure shows, for example testA_3,testA_17; by default easy and hard ones.
    """
    from histoloc.report.benchmark import report as write

    print(write(runs, out, title=title, images=images.split(",") if images else ()))


@app.command
def methods() -> None:
    """List the methods."""
    from histoloc.methods import METHODS

    names, titles = (max(map(len, column)) for column in (METHODS, [m.title for m in METHODS.values()]))
    learns = {"none": "nothing", "image": "labels", "pixel": "masks"}
    for name, method in METHODS.items():
        print(f"{name:{names}}  {method.title:{titles}}  learns from {learns[method.supervision]:7}  {method.paper}")


@app.command
def recipes() -> None:
    """List the recipes: published table cells and good defaults."""
    from histoloc.config import recipe_about, recipe_names

    for name in recipe_names():
        print(f"{name:18} {recipe_about(name)}")


@app.command
def doctor() -> None:
    """Say what this machine can do: torch, devices, bf16, OpenSlide, weights found."""
    from histoloc.doctor import examine

    for name, finding in examine().items():
        print(f"{name:18} {finding}")


def _write(out: Path, rows: "object", warnings: list[str]) -> None:
    from histoloc.data.table import read_table, write_table

    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    write_table(out, rows)  # pyright: ignore[reportArgumentType]
    print(read_table(out).counts().to_string())
    print(out)


if __name__ == "__main__":
    main()
