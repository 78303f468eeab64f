"""`histoloc benchmark TABLE`: every row of a published table on any table of images."""

from typing import Annotated

from cyclopts import App, Parameter

from histoloc.benchmark.presets import Choices

app = App(name="benchmark", help="The paper's table, its ablation, or every method, on a table of images.")

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


def _run(kind: str, choices: Choices) -> None:
    from histoloc.benchmark.run import benchmark

    failed = benchmark(kind, choices).failed
    if failed:
        raise SystemExit(1)
