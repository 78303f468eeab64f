"""How lambda, the weight of the background term, changes validation classification over folds. Masks are not used.

    python benchmarks/background_weight.py glas.csv sweep/ [--weights 1e-7 0.1 1 10] [--folds 0 1 2 3 4] [--lr 0.01]

Prints one row per lambda: validation classification error and cross-entropy of the selected epoch (mean and standard
deviation over folds), the paired t-test of the error against the lowest one, and the background term at the end of
training, which says whether lambda did anything. Finished runs are not done again, so that the script can be stopped,
resumed, and shared out between processes by --folds.
"""

import argparse
import math
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import ttest_rel

from histoloc.config import run_config
from histoloc.training import train


def run(table: Path, out: Path, weight: float, fold: int, arguments: argparse.Namespace) -> dict[str, float]:
    name = f"lambda{weight:g}-lr{arguments.lr:g}-fold{fold}"
    config = run_config(
        {
            "method": "maxmin",
            "data": str(table),
            "fold": fold,
            "options": {"background_weight": weight, "background": arguments.background},
            "backbone": {"stride": 8, "dilate": False},
            "input": {"small_side": arguments.size, "crop": arguments.size - 8},
            "training": {"epochs": arguments.epochs, "lr": arguments.lr},
        },
        where=name,
    )
    train(config, out / name, resume=True, progress=False)
    log = pd.read_csv(out / name / "log.csv")
    chosen = log[log["selected"] == 1].iloc[-1]
    return {
        "lambda": weight,
        "fold": fold,
        "error %": chosen["valid/cl_error"],
        "cross-entropy": chosen["valid/cross_entropy"],
        "R at the end, nats": log["train/background"].iloc[-1] / weight,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=float, nargs="+", default=[1e-7, 0.1, 1.0, 10.0])
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--background", choices=["sem", "eem"], default="sem")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [
        run(arguments.table, arguments.out, weight, fold, arguments)
        for weight in arguments.weights
        for fold in arguments.folds
    ]
    runs = pd.DataFrame(rows)
    frame = runs.drop(columns="fold").groupby("lambda").agg(["mean", "std"])
    errors = runs.pivot_table(index="fold", columns="lambda", values="error %")
    best = errors.mean().idxmin()
    p_values = {weight: float(ttest_rel(errors[weight], errors[best]).pvalue) for weight in arguments.weights}
    print(f"{arguments.background}, lr {arguments.lr:g}, {arguments.epochs} epochs, folds {arguments.folds}")
    print(frame.round(3).to_string())
    print("p of the error against the lowest:", ", ".join(f"{w:g}: {p:.3f}" for w, p in p_values.items()))
    print(f"a background without any class evidence has R = log 2 = {math.log(2):.3f} (sem), -{math.log(2):.3f} (eem)")


if __name__ == "__main__":
    main()
