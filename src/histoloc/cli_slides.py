"""`histoloc slides`: look at whole slides."""

from pathlib import Path

from cyclopts import App

app = App(name="slides", help="Whole slides: what a file holds, and where its tissue is.")


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
        out: the picture (PNG).
        at: micrometres per pixel at which tissue is looked for, and of the picture.
    """
    from PIL import Image

    from histoloc.files import atomic_path
    from histoloc.slides.reader import open_slide
    from histoloc.slides.tissue import tissue as find
    from histoloc.slides.tissue import tissue_picture

    with open_slide(slide, mpp=mpp) as opened:
        mask = find(opened, mpp=at)
        picture = tissue_picture(opened, mask)
        mm2 = opened.width * opened.height * (opened.mpp / 1000) ** 2 * float(mask.mean())
    with atomic_path(out) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    print(f"tissue on {100 * float(mask.mean()):.1f} % of the slide, {mm2:.2f} mm²")
    print(out)
