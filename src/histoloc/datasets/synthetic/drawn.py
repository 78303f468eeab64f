"""Many drawn images in a table to train a prior on: in processes, and resumable."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from histoloc.data.table import write_table
from histoloc.datasets.synthetic.dataset import Scene, draw
from histoloc.errors import InputError
from histoloc.runner import run_jobs


def drawn_table(
    out: Path, *, scene: Scene, seed: int, count: int, size: tuple[int, int], workers: int = 2, progress: bool = True
) -> Path:
    """Draw images of a scene with their masks; what an earlier call has drawn is kept.

    Args:
        out: folder for images, masks and table.csv.
        scene: what is drawn.
        seed: of the images.
        count: number of images; fewer are the beginning of more with the same seed.
        size: (H, W) in pixels.
        workers: processes.
        progress: show a bar.

    Returns:
        The table, all of whose rows are of split train.

    Raises:
        InputError: the folder has images of another scene, seed or size, or cannot be written.
    """
    out = Path(out)
    if count < 1:
        raise InputError(f"--count {count}: give the number of images to draw, 1 or more")
    settings = {"scene": scene, "seed": seed, "height": size[0], "width": size[1]}
    items = {f"{index:05d}": index for index in range(count)}
    result = run_jobs(partial(_draw, out.absolute()), items, out, settings=settings, workers=workers, progress=progress)
    if result.failed:
        name, reason = next(iter(result.failed.items()))
        raise InputError(f"{out}: image {name} could not be drawn ({reason}); the call again draws what is missing")
    rows = pd.DataFrame(list(result.results.values())).assign(split="train")
    for column in ("image", "mask"):
        rows[column] = [str(out / cell) for cell in rows[column]]
    write_table(out / "table.csv", rows)
    return out / "table.csv"


def _draw(out: Path, index: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    row = draw(out, index, **settings)
    return row | {name: row[name].relative_to(out).as_posix() for name in ("image", "mask")}
