"""Synthetic glands -> train -> evaluate -> report.html: the first thing a newcomer runs."""

from dataclasses import replace
from pathlib import Path

from histoloc.bounds import Count, Whole
from histoloc.config import read_recipe, run_config
from histoloc.data.table import read_table
from histoloc.datasets.synthetic.dataset import synthetic_table
from histoloc.evaluation import evaluate, summary_line
from histoloc.report import write_report
from histoloc.training import train
from histoloc.work_folder import INPUTS_FILE, check_inputs, inputs_of, locked, read_json

RUNS = {"maxmin": "quickstart-sem", "gap": "quickstart-gap", "allones": None}


def quickstart(
    out: Path = Path("quickstart"), *, seed: Whole = 0, count: Count = 240, epochs: Count | None = None
) -> Path:
    """Synthetic glands -> train max-min, GAP and all-ones -> evaluate -> report.html, in under five minutes.

    Args:
        out: folder for images, runs and report; a second call goes on where the first was stopped.
        seed: of the images and of training.
        count: number of images.
        epochs: of each training; by default what the recipe says.

    Returns:
        The report.

    Raises:
        InputError: another call is writing there, or a finished run is of other images.
    """
    with locked(out):
        table = out / "images" / "table.csv"
        if not table.is_file():
            print(f"1/4 drawing {count} images of synthetic glands")
            synthetic_table(out=out / "images", count=count, seed=seed)
        else:
            print(f"1/4 the images in {table.parent} are kept; choose another --out for another --count or --seed")
        for step, method in enumerate(RUNS):
            print(f"{min(step + 2, 4)}/4 {method}: train on the labels, measure on the test images")
            _train(method, table, out / "runs" / method, seed, epochs)
        runs = [out / "runs" / method for method in RUNS]
        report = write_report(runs, out / "report.html", title="histoloc quick start: synthetic glands")
        print(f"report: {report}")
    return report


def _train(method: str, table: Path, run: Path, seed: int, epochs: int | None) -> None:
    if (run / "metrics.json").is_file():
        check_inputs(run, read_json(run / INPUTS_FILE), inputs_of(read_table(table, check_files=False)))
        return
    recipe = RUNS[method]
    values = read_recipe(recipe) if recipe else {"method": method}
    config = run_config({**values, "data": str(table), "recipe": recipe}, where=f"recipe {recipe}")
    # One device: more would start this whole command again in every process.
    epochs = config.training.epochs if epochs is None else epochs
    training = replace(config.training, seed=seed, epochs=epochs, devices="1")
    train(replace(config, training=training), run, resume=True)
    print(f"    {summary_line(evaluate(run, table))}")
