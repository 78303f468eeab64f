import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

CLASSES = ["benign", "malignant"]


def metric(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": 6}


def metrics_file(name: str, error: float, f1_plus: float) -> dict:
    return {
        "method": "maxmin",
        "run": name,
        "table": "glands.csv",
        "split": "test",
        "n_images": 6,
        "threshold": {"rule": "fixed", "value": 0.5},
        "uses_masks": ["epoch chosen on 17 validation masks"] if name == "second" else [],
        "metrics": {
            "cl_error": metric(error, 0.0, 50.0),
            "f1_plus": metric(f1_plus, 60.0, 81.0),
            "f1_minus": metric(50.0),
            "f1_mean": metric(None),
            "pxap": metric(61.234),
            "tpr": metric(75.0),
            "tnr": metric(25.0),
            "confusion": [[3, 0], [1, 2]],
            "classes": CLASSES,
            "threshold_curve": {
                "threshold": [0.0, 0.5, 1.0],
                "f1_plus": [66.0, 70.0, None],
                "f1_minus": [0, 50.0, 60.0],
            },
            "oracle_threshold": metric(0.25),
            "oracle_f1_plus": metric(80.0),
            "oracle_f1_mean": metric(None),
        },
        "seconds": 1.5,
    }


def write_run(folder: Path, *, error: float, f1_plus: float, seed: int) -> Path:
    """A run folder as training and evaluation leave it, with six images of 40 x 60 pixels."""
    random = np.random.default_rng(seed)
    evaluation = folder / "evaluation" / "test"
    (evaluation / "images").mkdir(parents=True)
    shared = folder.parent / "data"
    shared.mkdir(exist_ok=True)
    rows = []
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        truth = np.zeros((40, 60), np.uint8)
        truth[10:30, 5 * number : 5 * number + 25] = 255
        roi = np.clip(truth.astype(float) + random.normal(0, 80, truth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(shared / f"{number}.png")
        Image.fromarray(truth).save(shared / f"{number}_truth.png")
        Image.fromarray(roi).save(evaluation / "images" / f"{number}_map.png")
        Image.fromarray((roi >= 128).astype(np.uint8) * 255).save(evaluation / "images" / f"{number}_mask.png")
        rows.append(
            {
                "name": f"gland {number}.png",
                "label": CLASSES[number == 5],
                "predicted": CLASSES[number >= 4],
                "prob_benign": 0.8 if number < 4 else 0.125,
                "prob_malignant": 0.2 if number < 4 else 0.875,
                "correct": int(number != 4),
                "f1_plus": np.nan if number == 2 else 90.0 - 10 * number,
                "f1_minus": 90.0 - 10 * number,
                "roi_fraction": 0.2,
                "true_fraction": 0.2,
                "file": str(number),
                "image": str(shared / f"{number}.png"),
                "mask": f"../../../data/{number}_truth.png",
            }
        )
    pd.DataFrame(rows).to_csv(evaluation / "per_image.csv", index=False)
    (evaluation / "metrics.json").write_text(json.dumps(metrics_file(folder.name, error, f1_plus)))
    (folder / "metrics.json").write_text((evaluation / "metrics.json").read_text())
    write_training(folder)
    return folder


def write_training(folder: Path) -> None:
    settings = {"method": "maxmin", "recipe": None, "options": {"sigma": {"start": 1.0}}, "seed": 7}
    settings["published"] = {"source": "Table I <a>", "cl_error": 0.0, "f1_plus": 71.94, "f1_minus": 69.23}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    pd.DataFrame(
        {
            "epoch": [0, 1, 2],
            "seconds": [1.0, 1.0, 1.0],
            "lr": [0.1, 0.1, 0.01],
            "train/size": [3.0, 2.0, 1.0],
            "train/total": [4.0, 3.0, 2.0],
            "valid/cl_error": [np.nan, 0.25, np.nan],
            "valid/never": [np.nan] * 3,
            "selected": [1, 1, 0],
        }
    ).to_csv(folder / "log.csv", index=False)
    (folder / "model").mkdir()
    selection = {"rule": "b_loc", "epoch": 1, "uses_masks": folder.name == "second", "masks_used": 17}
    (folder / "model" / "config.json").write_text(json.dumps({"selection": selection}))
