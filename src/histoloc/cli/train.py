"""`histoloc train METHOD`: one command per method, made from the table of methods and their options.

It stands apart from cli.py because it needs torch, and `histoloc --help` does not.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict

from histoloc.config import RunConfig, TrainingConfig, plain, read_recipe, run_config
from histoloc.data.transforms import InputConfig
from histoloc.errors import InputError
from histoloc.methods import METHODS, Method
from histoloc.nn.backbone import BackboneConfig
from histoloc.options import EvaluationOptions

_SECTIONS = ("options", "backbone", "input", "training")


def _from_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill what no flag gave from `--recipe`: flag > YAML > default."""
    given = next((a.tokens[0].value for a in arguments if "--recipe" in a.names and a.tokens), None)
    if given is None:
        return
    values = read_recipe(given)
    if values["method"] != commands[-1]:
        raise InputError(
            f"--recipe {given} is for {values['method']}, not {commands[-1]}; use histoloc train {values['method']}"
        )
    known = {name for argument in arguments for name in argument.names}
    flat = {k: v for k in ("data", "fold", "empty_class") if (v := values.get(k)) is not None}
    for section in _SECTIONS:
        flat |= {k: v for k, v in (values.get(section) or {}).items() if v is not None}
    flags = {key.replace("_", "-"): value for key, value in plain(flat).items()}
    flags = {key: value for key, value in flags.items() if f"--{key}" in known}
    # Nested below the commands: Cyclopts drops a flat key that is also a command, as `data` is.
    nested = functools.reduce(lambda inner, name: {name: inner}, reversed(commands), flags)
    Dict(nested, source=given)(app, commands, arguments)


app = App(name="train", help="Train a method on image labels.", config=_from_recipe)


def _command(name: str, method: type[Method]) -> Callable[..., None]:
    def train(
        *,
        data: Path,
        out: Path,
        fold: int | None = None,
        empty_class: str | None = None,
        recipe: str | None = None,
        resume: bool = False,
        options: Any = None,
        backbone: Any = None,
        input: Any = None,
        training: Any = None,
    ) -> None:
        from histoloc.evaluation import keep_as_own, run_evaluation
        from histoloc.report import write_report
        from histoloc.training import train as run

        chosen = {"options": options, "backbone": backbone, "input": input, "training": training}
        sections = {k: plain(v) for k, v in chosen.items() if v is not None}
        values: dict[str, Any] = {"method": name, "data": data.as_posix(), "fold": fold, "empty_class": empty_class}
        values |= sections
        if recipe is not None:
            shipped = read_recipe(recipe)
            values |= {"recipe": shipped.get("recipe", recipe), "published": shipped.get("published")}
        config: RunConfig = run_config(values, where="command line")

        def finish() -> None:
            own = out / "evaluation" / "valid"
            shutil.rmtree(own, ignore_errors=True)  # of the weights before
            device = "cpu" if training.accelerator == "cpu" else "auto"
            asked = EvaluationOptions(split="valid", fold=fold, device=device)
            evaluated = run_evaluation(out, data, asked, out=own)
            keep_as_own(out, evaluated.folder)
            print("validation: " + "\n".join(evaluated.lines))
            print(write_report([out], out / "report.html"))

        run(config, out, resume=resume, then=finish)

    train.__doc__ = f"""Train {method.title}: {method.paper}.

    Args:
        data: the table (CSV).
        out: the run folder to write.
        fold: which fold of the table is the validation split.
        empty_class: the class whose images have no ROI (normal tissue): every map of its images is that of the other
            class.
        recipe: name of a shipped recipe (`histoloc recipes`) or a YAML file, also a run's run.yaml; flags win over it.
        resume: go on with a run that was stopped, on the same kind of device, in the same precision and by as many
            processes. The result has the same bits on a CPU in float32 (with as many threads, on a machine of the same
            type), and agrees up to rounding elsewhere.
    """
    sections: dict[str, tuple[str, type[Any]]] = {
        "options": (f"{method.title} options", method.Options),
        "backbone": ("Backbone", BackboneConfig),
        "input": ("Input", InputConfig),
        "training": ("Training", TrainingConfig),
    }
    for section, (title, kind) in sections.items():
        flat = Parameter(name="*", group=Group(title))
        train.__annotations__[section] = (
            Annotated[kind, flat] if dataclasses.fields(kind) else Annotated[Any, Parameter(parse=False)]
        )
    defaults = {section: kind() for section, (_, kind) in sections.items()} | {"backbone": method.default_backbone}
    train.__kwdefaults__ = {**(train.__kwdefaults__ or {}), **defaults}
    return train


for _name, _method in METHODS.items():
    app.command(_command(_name, _method), name=_name)
