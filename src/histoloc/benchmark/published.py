"""How far the numbers of a benchmark were made as the published ones beside them."""

from collections.abc import Mapping
from dataclasses import dataclass

from histoloc.benchmark.presets import PRESETS
from histoloc.benchmark.results import Bench

BACKBONE = "resnet18"  # timm's name of what the paper has


@dataclass(frozen=True)
class Published:
    """How published numbers were made.

    Attributes:
        preset: which of ours has these settings.
        side: of the images in pixels, where all have the same.
    """

    preset: str
    side: int | None = None


# Keys are those of DATASETS.
PUBLISHED: Mapping[str, Published] = {"glas": Published("paper"), "camelyon16": Published("camelyon16", 512)}


def set_apart(bench: Bench) -> list[str]:
    """What makes ours another experiment than the published one, each as `ours (published: theirs)`.

    Empty where no data set with published numbers is named.
    """
    if bench.dataset is None:
        return []
    theirs, overrides = PUBLISHED[bench.dataset], bench.settings.get("overrides") or {}
    epochs = PRESETS[theirs.preset]["training"]["epochs"]
    found = {
        "preset": (bench.settings.get("preset"), theirs.preset),
        "epochs": (overrides.get("epochs"), epochs),
        "images of": (_sides(bench), None if theirs.side is None else f"{theirs.side} px"),
    }
    said = [
        f"{name} {ours} (published: {published})"
        for name, (ours, published) in found.items()
        if ours is not None and published is not None and ours != published
    ]
    learned = [cell.settings.get("backbone") or {} for cell in bench.cells if cell.cost.get("epochs")]
    others = sorted({str(of["backbone"]) for of in learned if of.get("backbone")} - {BACKBONE})
    return said + ([f"backbone {', '.join(others)} (published: a ResNet-18)"] if others else [])


def _sides(bench: Bench) -> str | None:
    """Least and greatest side of the images, or None in a benchmark that did not write it down."""
    sides = bench.settings.get("image_sides")
    if not sides:
        return None
    least, greatest = sides
    return f"{least} px" if least == greatest else f"{least} to {greatest} px"
