"""`histoloc benchmark TABLE`: every row of a published table on any table of images."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from histoloc.benchmark.presets import Choices, MapChoices, PictureOptions

app = App(name="benchmark", help="Tables of methods on a table of images: the paper's, or tiers of supervision.")

Flags = Annotated[Choices, Parameter(name="*")]


@app.command
def table1(*, choices: Flags) -> None:
    """The paper's Table 1: methods x folds x seeds, trained, measured and compared.

    A second call goes on where the first was stopped; finished cells are never redone.
    """
    _run("table1", choices)


@app.command
def ablation(*, choices: Flags) -> None:
    """The paper's ablation of max-min: FG only, + BG by EEM or SEM, + ASC.

    A second call goes on where the first was stopped; finished cells are never redone.
    """
    _run("ablation", choices)


@app.command
def methods(*, choices: Flags) -> None:
    """Every method with its default options, also those that the paper's table does not have.

    A second call goes on where the first was stopped; finished cells are never redone.
    """
    _run("methods", choices)


@app.command
def maps(*, choices: Annotated[MapChoices, Parameter(name="*")]) -> None:
    """Tiers of supervision: labels only, + synthetic prior (no human masks), + masks; measured on held-out images.

    A second call goes on where the first was stopped; finished cells are never redone.
    """
    _run("maps", choices)


@app.command
def pictures(
    bench: Path,
    *,
    out: Path,
    options: Annotated[PictureOptions, Parameter(name="*")] = PictureOptions(),  # noqa: B008
) -> None:
    """Pictures of held-out images, the best, the median and the worst of a row, and the worst of the prior.

    Args:
        bench: a folder that `histoloc benchmark` wrote.
        out: a folder for the pictures.
        options: which.
    """
    from histoloc.benchmark.held_out import write_pictures

    print(write_pictures(bench, out, options))


def _run(kind: str, choices: Choices) -> None:
    from histoloc.benchmark.run import benchmark

    failed = benchmark(kind, choices).failed
    if failed:
        raise SystemExit(1)
