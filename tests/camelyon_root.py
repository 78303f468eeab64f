"""A folder in the official layout of Camelyon16, with slides of the factory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from asap import write_asap
from factory import Region, make_slide


def make_root(
    root: Path,
    size: tuple[int, int],
    mpp: float,
    normal: Sequence[Region],
    tumour: Callable[[int], Sequence[Region]],
    *,
    training: int,
    testing: int,
) -> Path:
    """`training` slides of each class and `testing` of each class; `tumour` draws the regions of slide number n."""
    labels = []
    plan = [(f"training/{c}/{c}_{i:03}", c) for c in ("normal", "tumor") for i in range(1, training + 1)]
    plan += [(f"testing/images/test_{i:03}", ("tumor", "normal")[i % 2]) for i in range(1, 2 * testing + 1)]
    for number, (name, label) in enumerate(plan):
        path = root / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        regions = tumour(number) if label == "tumor" else normal
        make_slide(path, size, mpp, regions, downsamples=(1, 8))
        part, stem = name.split("/")[0], path.stem
        if label == "tumor":
            write_asap(root / part / "lesion_annotations" / f"{stem}.xml", regions)
        if part == "testing":
            labels.append(f"{stem},{label.title()},None,None")
    (root / "testing/reference.csv").write_text("\n".join(labels) + "\n")
    return root
