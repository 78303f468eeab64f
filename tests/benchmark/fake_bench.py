"""A benchmark folder with numbers of our choice and no pictures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

IMAGES = ("a", "b", "c", "d")


def estimate(value: float | None) -> dict[str, Any]:
    low, high = (None, None) if value is None else (max(0, value - 5), min(100, value + 5))
    return {"value": value, "low": low, "high": high, "n": 0 if value is None else 4}


def write_settings(folder: Path, rows: list[str], **changes: Any) -> Path:
    """Write benchmark.json: table1 on glas.csv, folds 0 and 1, seeds 0 and 1, validation split."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"kind": "table1", "data": "data/glas.csv", "preset": "fast", "folds": [0, 1], "seeds": [0, 1]}
    settings |= {"rows": rows, "split": "valid", "command": "histoloc benchmark", "overrides": {}, "machine": {}}
    (folder / "benchmark.json").write_text(json.dumps(settings | {"format": 1} | changes))
    return folder


def write_cell(
    folder: Path,
    row: str,
    fold: int | None,
    seed: int,
    f1_plus: Mapping[str, float],
    f1_minus: Mapping[str, float],
    *,
    cl_error: float | None = 10.0,
    argmax: float | None = None,
    per_image: float | None = None,
    maps: str | None = None,
    split: str = "valid",
    selection: str | None = "error-loss",
    uses_masks: tuple[str, ...] = (),
) -> Path:
    """Write a finished cell whose metrics are the means over the images given; NaN: undefined in that image."""
    run = folder / "cells" / row / f"{'nofold' if fold is None else f'fold{fold}'}-seed{seed}"
    evaluation = run / "evaluation" / split
    evaluation.mkdir(parents=True)
    images = pd.DataFrame({"name": list(f1_plus), "f1_plus": f1_plus.values(), "f1_minus": f1_minus.values()})
    images.to_csv(evaluation / "per_image.csv", index=False)
    plus, minus = images["f1_plus"].mean(), images["f1_minus"].mean()
    metrics = {"f1_plus": plus, "f1_minus": minus, "f1_mean": (plus + minus) / 2, "cl_error": cl_error, "pxap": 60.0}
    content = {
        "method": row,
        "table": "glas.csv",
        "split": split,
        "fold": fold,
        "n_images": len(images),
        "threshold": {"rule": "fixed", "value": 0.5},
        "selection": {"rule": selection},
        "uses_masks": list(uses_masks),
        "metrics": {
            name: estimate(None if value is None or math.isnan(value) else value) for name, value in metrics.items()
        }
        | {
            "recall": {"benign": estimate(75.0), "malignant": estimate(None)},
            "oracle_threshold": estimate(0.25),
            "classes": ["benign", "malignant"],
        },
        "argmax_rule": None if argmax is None else {"f1_plus": estimate(argmax), "f1_minus": estimate(argmax / 2)},
        "range": maps,
    }
    if per_image is not None:
        rule = {"f1_plus": per_image, "f1_minus": per_image / 2, "f1_mean": 0.75 * per_image, "pxap": per_image / 4}
        content["per_image_rule"] = {name: estimate(value) for name, value in rule.items()}
    (evaluation / "metrics.json").write_text(json.dumps(content))
    (run / "run.yaml").write_text("backbone: {backbone: efficientnet_lite0, stride: 8}\ntraining: {lr: 0.001}\n")
    cost = {"row": row, "fold": fold, "seed": seed, "train_seconds": 100.0 + 20 * seed, "evaluate_seconds": 2.0}
    cost |= {"peak_memory_mb": 900.0, "epochs": 40, "selected_epoch": 17, "parameters": 3_400_000, "device": "cpu"}
    (run / "cell.json").write_text(json.dumps(cost))
    return run


def flat(value: float) -> dict[str, float]:
    """The same number for every image."""
    return dict.fromkeys(IMAGES, value)


def write_bench(folder: Path) -> Path:
    """Three rows of which GAP is the baseline; fold 1 of max-min is not finished and one of its cells failed."""
    write_settings(folder, ["maxmin-sem", "gap", "unet"])
    for fold in (0, 1):
        for seed in (0, 1):
            plus = 60.0 + 10 * fold + 2 * seed  # 60, 62, 70, 72
            write_cell(folder, "gap", fold, seed, flat(plus), flat(20.0), argmax=50.0 + seed)
            write_cell(folder, "unet", fold, seed, flat(90.0), flat(88.0), cl_error=None)
    for seed in (0, 1):
        write_cell(folder, "maxmin-sem", 0, seed, flat(71.0 + seed), flat(69.0), cl_error=5.0)
    failed = folder / "cells" / "maxmin-sem" / "fold1-seed0"
    failed.mkdir()
    (failed / "error.txt").write_text("Traceback (most recent call last)\nRuntimeError: out of memory\n\n")
    return folder
