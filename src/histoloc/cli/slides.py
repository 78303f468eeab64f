"""`histoloc slides`: look at whole slides."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from histoloc.bounds import Positive
from histoloc.cli.failures import list_failed
from histoloc.options import ALL, SlideOptions
from histoloc.work_folder import safe_name

app = App(name="slides", help="Whole slides: what a file holds, where its tissue is, and what a model says of it.")


def _tell(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


@app.command
def info(slide: Path, *, mpp: Positive | None = None, properties: bool = False) -> None:
    """Size, micrometres per pixel and levels of a slide.

    Args:
        slide: a format of OpenSlide, or a TIFF, PNG or JPEG.
        mpp: micrometres per pixel of level 0, where the file does not say it.
        properties: also all that the scanner wrote.
    """
    from histoloc.slides.reader import describe, open_slide

    with open_slide(slide, mpp=mpp) as opened:
        facts = describe(opened)
        _tell(opened.notes)
    levels, of_scanner = facts.pop("levels"), facts.pop("properties")
    for number, level in enumerate(levels):
        facts[f"level {number}"] = f"{level['width']} x {level['height']} px, {level['mpp']:.4g} µm/px"
    for name, value in (facts | (of_scanner if properties else {})).items():
        print(f"{name:12} {value}")


@app.command
def tissue(slide: Path, *, out: Path, at: Positive = 8.0, mpp: Positive | None = None) -> None:
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
        _tell(opened.notes)
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
    options: Annotated[SlideOptions, Parameter(name="*")] = SlideOptions(),  # noqa: B008
) -> None:
    """Find the ROI on whole slides: map, outlines for QuPath, answer and picture of each, and one table over all.

    OUT gets slides.csv (a row per slide, the highest score first) and for each slide a folder with map.ome.tif,
    uncertainty.ome.tif, regions.geojson, slide.json, tiles.csv and overview.png; `histoloc view OUT` shows them. A
    second call does only what is missing, and goes on in the middle of a slide; calls for other slides may share OUT
    at the same time. Exit code 1: some slides failed, see failed.csv; 2: none could be done.

    Args:
        model: a run, a model folder, or a shipped prior, as prior:glands.
        slides: slides, or folders of them.
        out: folder for the results.
        options: how.
    """
    from histoloc.model_folder import map_classes
    from histoloc.slide_cohort import predict_slides

    failed: dict[str, str] = {}
    for name in map_classes(model, options):
        place = out / safe_name(str(name)) if options.map_class == ALL else out
        cohort = predict_slides(model, slides, place, replace(options, map_class=name))
        _tell(cohort.notes)
        print(cohort.table[["name", "class", "score", "roi_mm2", "roi_share", "regions"]].to_string(index=False))
        print(place / "slides.csv")
        failed |= cohort.failed
    list_failed(failed)
