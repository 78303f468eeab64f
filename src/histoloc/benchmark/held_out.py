"""Pictures of held-out images of a benchmark: the best, the median and the worst of a row, to be looked at."""

from pathlib import Path

import numpy as np
import pandas as pd

from histoloc.benchmark.presets import PictureOptions, parse_numbers
from histoloc.benchmark.results import Bench, read_bench
from histoloc.data.images import read_image, read_map, read_mask, write_picture
from histoloc.errors import InputError
from histoloc.pictures import agreement, outline, overlay
from histoloc.places import located
from histoloc.work_folder import write_text

GAP = 8  # white pixels between panels


def write_pictures(folder: Path, out: Path, options: PictureOptions) -> Path:
    """Write pictures of held-out images: truth, map, and where the mask agrees with the truth, side by side.

    Args:
        folder: of a benchmark.
        out: a folder for them: `ROW/` and `ROW-worst/`, each with images.csv.
        options: which.

    Returns:
        `out`.

    Raises:
        InputError: the benchmark has no such row, no finished cell of it, or no maps and truths of its images.
    """
    bench, o = read_bench(folder), options
    if o.count < 3:
        raise InputError(f"--count {o.count}: give 3 or more, for the best, the median and the worst")
    scores = bench.spread(["f1_mean"])[0]["f1_mean"]
    rivals = [row.name for row in bench.rows if row.learns_from != "masks" and scores[row.name] >= 0]
    alone = [row.name for row in bench.rows if row.prior == "alone" and bench.of(row)]
    row = o.row or max(rivals, key=lambda name: scores[name], default="")
    _write(_images(bench, row, o), out / row, ("best", "median", "worst"), o.count)
    if worst_of := o.worst_of or next(iter(alone), ""):
        _write(_images(bench, worst_of, o), out / f"{worst_of}-worst", ("worst",), o.count)
    return out


def _images(bench: Bench, row: str, o: PictureOptions) -> pd.DataFrame:
    """The images of a row with a map and a truth, from the best to the worst."""
    folds = parse_numbers(o.folds, "--folds")
    cells = [c for c in bench.cells if c.row.name == row and c.seed == o.seed and c.fold in folds]
    frames = [
        c.evaluation.images.assign(fold=c.fold, folder=str(c.evaluation.folder), home=c.evaluation.result.home or "")
        for c in cells
    ]
    images = pd.concat(frames) if frames else pd.DataFrame(columns=["file", "mask", "image"])
    images = images[(images[["file", "mask", "image"]] != "").all(axis=1)]
    if images.empty:
        raise InputError(
            f"{bench.folder}: row {row or 'that learns'} has no finished cell of seed {o.seed} and --folds {o.folds} "
            f"that kept maps of images with a mask; its rows are {', '.join(r.name for r in bench.rows)}"
        )
    return images.assign(f1_mean=images[["f1_plus", "f1_minus"]].mean(axis=1)).sort_values(
        "f1_mean", ascending=False, kind="stable", ignore_index=True
    )


def _write(images: pd.DataFrame, out: Path, ranks: tuple[str, ...], count: int) -> None:
    """Write a picture of each chosen image, and their list."""
    each = min(count // len(ranks), len(images) // len(ranks) or 1)
    middle = (len(images) - each) // 2
    starts = {"best": 0, "median": middle, "worst": len(images) - each}
    chosen = pd.concat([images[starts[r] : starts[r] + each].assign(rank=r) for r in ranks], ignore_index=True)
    files = []
    for number, row in chosen.iterrows():
        folder = Path(row["folder"])
        image = read_image(folder / located(folder, row["home"], row["image"]))
        truth = read_mask(folder / located(folder, row["home"], row["mask"]))
        stem = folder / "images" / row["file"]
        roi, mask = read_map(stem.with_name(f"{stem.name}_map.png")), read_mask(stem.with_name(f"{stem.name}_mask.png"))
        space = np.full((len(image), GAP, 3), 255, np.uint8)
        panels = [outline(image, truth), space, overlay(image, roi, mask), space, agreement(image, mask, truth)]
        files.append(f"{int(str(number)) + 1:02d}-{row['rank']}-{Path(row['name']).stem}.png")
        write_picture(out / files[-1], np.hstack(panels))
    columns = ["picture", "rank", "name", "fold", "label", "f1_plus", "f1_minus", "f1_mean"]
    table = chosen.assign(picture=files, name=[Path(name).name for name in chosen["name"]])[columns]
    write_text(out / "images.csv", table.to_csv(index=False, float_format="%.2f"))
