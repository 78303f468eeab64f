"""The command line: each command calls one function and adds nothing."""

import sys
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from histoloc.bounds import reason
from histoloc.cli.failures import list_failed
from histoloc.errors import InputError
from histoloc.options import ALL, EvaluationOptions, PredictionOptions
from histoloc.viewer.serve import view
from histoloc.work_folder import safe_name

# What loads torch is named by its place, and loaded when it is called.
GROUPS = {
    "data": "Turn a data set into a table (CSV); nothing downstream knows where it came from.",
    "train": "Train a method; `histoloc train METHOD --help` lists all.",
    "prior": "Models that learned from drawn images alone where structures lie: make, adapt, list.",
    "slides": "Whole slides: what a file holds, where its tissue is, and what a model says of it.",
    "benchmark": "Every row of Table 1, or the ablation; resumable.",
}
FUNCTIONS = {
    "quickstart": "Synthetic glands -> train -> evaluate -> report.html, in under five minutes.",
    "doctor": "Say what this machine can do: torch, devices, bf16, OpenSlide, weights found.",
}
app = App(
    name="histoloc",
    help="Weakly-supervised localization in histology: train on image labels, get class, region and certainty.",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),  # no --empty-runs beside --empty-class
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `main` says what became of the work
)
for _name, _help in GROUPS.items():
    app.command(f"histoloc.cli.{_name}:app", name=_name, help=_help)
for _name, _help in FUNCTIONS.items():
    app.command(f"histoloc.{_name}:{_name}", name=_name, help=_help)
app.command(view)

Runs = Annotated[list[Path], Parameter(allow_leading_hyphen=False)]
EvaluationFlags = Annotated[EvaluationOptions, Parameter(name="*")]
PredictionFlags = Annotated[PredictionOptions, Parameter(name="*")]


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what the user did wrong ends with one sentence, or a list, and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # terminals and logs without µ, ² and –
            stream.reconfigure(errors="replace")
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except (InputError, CycloptsError) as error:
        print(f"histoloc: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as interrupt:
        remedy = str(interrupt) or "what is complete is kept; the same command does the rest"
        print(f"histoloc: interrupted; {remedy}", file=sys.stderr)
        raise SystemExit(130) from None


def _sentence(error: Exception) -> str:
    """What is wrong, in our words where it is the value of an option."""
    if isinstance(error, InputError):
        return str(error)
    cause, argument = error.__cause__, getattr(error, "argument", None)
    why = reason(cause) if isinstance(cause, ValidationError) else str(cause)
    if argument is not None and argument.tokens and why.startswith("must"):
        value = " ".join(token.value for token in argument.tokens)
        return f"{argument.tokens[0].keyword or argument.name} {value} is wrong ({why}); correct it"
    return " ".join(str(error).split())


@app.command
def evaluate(
    source: Path,
    *,
    data: Path,
    out: Path | None = None,
    options: EvaluationFlags = EvaluationOptions(),  # noqa: B008
) -> None:
    """Measure a model, or a folder of anybody's heatmaps, on one split of a table.

    Exit code 1: some heatmaps could not be used, and the others were measured.

    Args:
        source: a run, a model folder, a shipped prior as prior:glands, or a folder with one heatmap per image
            (STEM.npy, .png or .tif, in [0, 1]).
        data: the table (CSV).
        out: folder for the results; by default evaluation/SPLIT in the run, or, where that has another evaluation, a
            folder named by split and options beside it. A shipped prior needs it.
        options: what is measured.
    """
    from histoloc.evaluation import run_evaluation
    from histoloc.model_folder import map_classes

    for name in map_classes(source, options):
        place = out / safe_name(str(name)) if out is not None and options.map_class == ALL else out
        evaluation = run_evaluation(source, data, replace(options, map_class=name), out=place)
        print(*evaluation.lines, sep="\n")
        list_failed(evaluation.failed)


@app.command
def predict(
    model: Path,
    images: Runs,
    *,
    out: Path,
    options: PredictionFlags = PredictionOptions(),  # noqa: B008
) -> None:
    """Localize in images: mask, heatmap and overlay of each, and one CSV with class, probabilities and ROI area.

    Exit code 1: some images could not be used, see the column error; 2: none could.

    Args:
        model: a run, a model folder, or a shipped prior, as prior:glands.
        images: image files, or folders of them.
        out: folder for the results.
        options: how.
    """
    from histoloc.localization_files import predict as run

    table = run(model, images, out, **vars(options))
    print(out / "predictions.csv")
    list_failed(dict(table.loc[table["error"] != "", ["image", "error"]].to_numpy()))


@app.command
def report(runs: Runs, *, out: Path | None = None, title: str | None = None, images: str | None = None) -> None:
    """One self-contained HTML page over runs, or over a benchmark: table with intervals, figure, curves, settings.

    Args:
        runs: runs, or folders that `histoloc evaluate` wrote; or one folder that `histoloc benchmark` wrote.
        out: the page; by default report.html here, or in the benchmark's folder.
        title: its headline.
        images: which images a benchmark's figure shows, for example testA_3,testA_17; by default easy and hard ones.
    """
    from histoloc.benchmark.report import report as write

    print(write(runs, out, title=title, images=images.split(",") if images else ()))


@app.command
def methods() -> None:
    """List the methods."""
    from histoloc.methods import METHODS
    from histoloc.types import tier

    rows = [(name, method.title, tier(method.supervision), method.paper) for name, method in METHODS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


@app.command
def recipes() -> None:
    """List the recipes: published table cells and good defaults."""
    from histoloc.config import recipe_about, recipe_names

    for name in recipe_names():
        print(f"{name:18} {recipe_about(name)}")


if __name__ == "__main__":
    main()
