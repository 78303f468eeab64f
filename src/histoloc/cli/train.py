"""`histoloc train METHOD`: one command per method, made from the table of methods and their options.

It stands apart from cli.py because it needs torch, and `histoloc --help` does not.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict

from histoloc.bounds import Checked, Whole
from histoloc.config import Published, RunConfig, TrainingConfig, plain, read_recipe
from histoloc.data.transforms import InputConfig
from histoloc.errors import InputError
from histoloc.methods import METHODS, Method
from histoloc.nn.backbone import BackboneConfig
from histoloc.options import EvaluationOptions
from histoloc.work_folder import RUN_FILE


@dataclass(frozen=True, kw_only=True)
class RunFlags(Checked):
    """What a run is made from and where.

    Attributes:
        data: the table (CSV).
        out: the run folder to write.
        columns: what the table calls its columns, as image=path,label=diagnosis, where not so.
        fold: which fold of the table is the validation split.
        empty_class: the class whose images have no ROI (normal tissue): every map of its images is that of the other
            class.
        prior: begin with the backbone and the decoder of this prior: one that is shipped (`prior:NAME`, see `histoloc
            prior list`), a run or a model folder. Where no flag says another thing, backbone and input are the prior's,
            and the method learns as docs/student.md says.
        drawn: a second table, of drawn images with masks: one image of its rows of split train is seen beside each
            image.
        teachers: finished runs or model folders whose maps are learned from.
        recipe: name of a shipped recipe (`histoloc recipes`) or a YAML file, also a run's run.yaml; flags win over it.
        resume: go on with a run that was stopped, on the same kind of device, in the same precision and by as many
            processes; what no flag says is as it was begun. The result has the same bits on a CPU in float32 (with as
            many threads, on a machine of the same type), and agrees up to rounding elsewhere.
    """

    data: Path
    out: Path
    columns: str = ""
    fold: Whole | None = None
    empty_class: str | None = None
    prior: str | None = None
    drawn: Path | None = None
    teachers: Annotated[tuple[Path, ...], Parameter(consume_multiple=True)] = ()
    recipe: str | None = None
    resume: bool = False


BackboneFlags = Annotated[BackboneConfig, Parameter(name="*", group=Group("Backbone"))]
InputFlags = Annotated[InputConfig, Parameter(name="*", group=Group("Input"))]
TrainingFlags = Annotated[TrainingConfig, Parameter(name="*", group=Group("Training"))]


def _beside_flags(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill what no flag gave: flag > run.yaml, where it is resumed > `--recipe` > what `--prior` needs > default."""
    tokens = {name: a.tokens[0].value for a in arguments for name in a.names if a.tokens}
    resume = any(token.implicit_value is True for a in arguments if "--resume" in a.names for token in a.tokens)
    recipe = _source(tokens.get("--recipe"), Path(tokens.get("--out", "")), resume)
    values = read_recipe(recipe) if recipe else {"method": commands[-1]}
    if values["method"] != commands[-1]:
        raise InputError(
            f"{recipe}: is for {values['method']}, not {commands[-1]}; use histoloc train {values['method']}"
        )
    flat: dict[str, Any] = {}
    if prior := tokens.get("--prior") or values.get("prior"):
        from histoloc.training_setup import prior_settings

        with suppress(InputError):  # training says what is wrong with a prior
            flat = _flat(prior_settings(commands[-1], prior))
    if not (recipe or prior):
        return
    flat |= {key: value for key, value in _flat(values).items() if value is not None}
    known = {name for argument in arguments for name in argument.names}
    flags = {key.replace("_", "-"): value for key, value in plain(flat).items() if value is not None}
    flags = {key: value for key, value in flags.items() if f"--{key}" in known}
    # Nested below the commands: Cyclopts drops a flat key that is also a command, as `data` is.
    nested = functools.reduce(lambda inner, name: {name: inner}, reversed(commands), flags)
    Dict(nested, source=recipe or f"--prior {prior}")(app, commands, arguments)


def _source(recipe: str | None, out: Path, resume: bool) -> str | None:
    """Where the settings come from that no flag gives: the run that is resumed, or else the recipe."""
    begun = resume and recipe is None and (out / RUN_FILE).is_file()
    return str(out / RUN_FILE) if begun else recipe


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run as a recipe has them, without sections."""
    flat = {key: values.get(key) or None for key in ("data", "columns", "empty_class", "prior", "drawn", "teachers")}
    flat["fold"] = values.get("fold")
    for section in ("options", "backbone", "input", "training"):
        flat |= values.get(section) or {}
    return flat


app = App(name="train", help="Train a method on image labels.", config=_beside_flags)


def _command(name: str, method: type[Method]) -> Callable[..., None]:
    def train(
        *,
        flags: Annotated[RunFlags, Parameter(name="*")],
        options: Any = method.Options(),  # noqa: B008
        backbone: BackboneFlags = method.default_backbone,
        input: InputFlags = InputConfig(),  # noqa: B008
        training: TrainingFlags = TrainingConfig(**method.default_training),  # noqa: B008
    ) -> None:
        from histoloc.data.table import read_table
        from histoloc.evaluation import keep_as_own, run_evaluation
        from histoloc.report import write_report
        from histoloc.training import train as run

        out, fold = flags.out, flags.fold
        recipe = _source(flags.recipe, out, flags.resume)
        shipped = read_recipe(recipe) if recipe else {}
        published = Published(**shipped["published"]) if shipped.get("published") else None
        names = {"recipe": shipped.get("recipe", flags.recipe), "published": published}
        names |= {key: getattr(flags, key) for key in ("columns", "empty_class", "prior", "drawn", "teachers")}
        config = RunConfig(name, flags.data, fold, options, backbone, input, training, **names)

        def finish() -> None:
            if all(
                sample.split != "valid" for sample in read_table(flags.data, fold=fold, columns=flags.columns).samples
            ):
                return
            own = out / "evaluation" / "valid"
            shutil.rmtree(own, ignore_errors=True)  # of the weights before
            device = "cpu" if training.accelerator == "cpu" else "auto"
            options = EvaluationOptions(split="valid", fold=fold, columns=flags.columns, device=device)
            evaluated = run_evaluation(out, flags.data, options, out=own)
            keep_as_own(out, evaluated.folder)
            print("validation: " + "\n".join(evaluated.lines))
            print(write_report([out], out / "report.html"))

        run(config, out, resume=flags.resume, then=finish)

    train.__doc__ = f"Train {method.title}: {method.paper}."
    own = Parameter(name="*", group=Group(f"{method.title} options"), parse=bool(dataclasses.fields(method.Options)))
    train.__annotations__["options"] = Annotated[method.Options, own]
    return train


for _name, _method in METHODS.items():
    app.command(_command(_name, _method), name=_name)
