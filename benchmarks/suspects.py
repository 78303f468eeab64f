"""Which setting decides whether max-min marks glands: one variant at a time, validation masks of synthetic glands.

    histoloc data synthetic --out synth1/ --count 150 --seed 1
    python benchmarks/suspects.py synth1/table.csv suspects/

Prints the last epoch's validation numbers of every variant. Masks are looked at (this is a study, not a selection), so
the images are drawn with another seed than the quick start's. Finished runs are not done again.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from histoloc.config import run_config
from histoloc.training import train

AUTHORS_MASK: dict[str, object] = {"slope": 5.0, "sigma_start": 0.15, "sigma_step": 0.001, "sigma_cap": 0.2}
LOCAL: dict[str, object] = {"stride": 8, "dilate": False}
VARIANTS: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "GAP": ("gap", {}, LOCAL),
    "max-min": ("maxmin", {}, LOCAL),
    "max-min, authors' sigma and slope": ("maxmin", AUTHORS_MASK, LOCAL),
    "max-min, lambda 1e-7": ("maxmin", {"background_weight": 1e-7}, LOCAL),
    "max-min, R trains the localizer only": ("maxmin", {"background_trains": "localizer"}, LOCAL),
    "max-min, no ASC": ("maxmin", {"size": "none"}, LOCAL),
    "max-min, all layers, stride 16": ("maxmin", {}, {"stride": 16, "dilate": True}),
    "GAP, all layers, stride 16": ("gap", {}, {"stride": 16, "dilate": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'':40} error %    F1+    F1-   PxAP")
    for name, (method, options, backbone) in VARIANTS.items():
        config = run_config(
            {
                "method": method,
                "data": str(arguments.table),
                "options": options,
                "backbone": backbone,
                "input": {"small_side": 160, "crop": 144},
                "training": {"epochs": arguments.epochs, "batch": 8, "lr": 0.01, "monitor": "masks"},
            },
            where=name,
        )
        run = arguments.out / name.replace(" ", "-").replace(",", "").replace("'", "")
        train(config, run, resume=True, progress=False)
        last = pd.read_csv(run / "log.csv").iloc[-1]
        numbers = (last[f"valid/{key}"] for key in ("cl_error", "f1_plus", "f1_minus", "pxap"))
        print(f"{name:40} " + " ".join(f"{number:6.2f}" for number in numbers), flush=True)


if __name__ == "__main__":
    main()
