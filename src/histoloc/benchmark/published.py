"""How far the numbers of a benchmark were made as the published ones beside them."""

from histoloc.benchmark.presets import PRESETS
from histoloc.benchmark.results import Bench

BACKBONE = "resnet18"  # timm's name of what the paper has
# By data set: which preset has the published settings, and the side of the images where all have the same.
PUBLISHED = {"glas": ("paper", None), "camelyon16": ("camelyon16", "512 px")}


def set_apart(bench: Bench) -> list[str]:
    """What makes ours another experiment than the published one, each as `ours (published: theirs)`.

    Empty where no data set with published numbers is named.
    """
    if bench.dataset is None:
        return []
    preset, side = PUBLISHED[bench.dataset]
    sides = bench.settings.get("image_sides")  # least and greatest
    values = {
        "preset": (bench.settings.get("preset"), preset),
        "epochs": ((bench.settings.get("overrides") or {}).get("epochs"), PRESETS[preset]["training"]["epochs"]),
        "images of": (f"{' to '.join(map(str, dict.fromkeys(sides)))} px" if sides else None, side),
    }
    apart = [
        f"{name} {ours} (published: {theirs})"
        for name, (ours, theirs) in values.items()
        if None not in (ours, theirs) and ours != theirs
    ]
    learned = [cell.settings.get("backbone") or {} for cell in bench.cells if cell.cost.get("epochs")]
    others = sorted({str(of["backbone"]) for of in learned if of.get("backbone")} - {BACKBONE})
    return apart + ([f"backbone {', '.join(others)} (published: a ResNet-18)"] if others else [])
