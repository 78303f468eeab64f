"""What a run is made of, and strict reading of it from YAML and JSON."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from histoloc.bounds import (
    Checked,
    Count,
    Integer,
    NotNegative,
    Number,
    PartBelowOne,
    Positive,
    ShareAboveNone,
    Whole,
    reason,
)
from histoloc.data.transforms import HALF, InputConfig
from histoloc.errors import InputError
from histoloc.methods import METHODS
from histoloc.nn.backbone import BackboneConfig, statistics
from histoloc.places import located, relative_place
from histoloc.types import Range
from histoloc.work_folder import INPUTS_FILE, RUN_FILE, read_json, read_yaml, write_text

T = TypeVar("T")


def _devices(text: str) -> str:
    if not re.fullmatch(r"auto|[1-9]\d{0,3}|(\d{1,3},)+\d{0,3}", text, re.ASCII):
        raise ValueError("must be auto, a number from 1, or numbers of GPUs such as 0,1")
    return text


SelectionRule = Literal["error-loss", "error-latest", "last", "pxap-masks"]
ThresholdRule = Literal["fixed", "otsu", "valid"]
Accelerator = Literal["auto", "cpu", "cuda", "gpu", "mps"]
Devices = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_devices)]
PLACES = ("data", "prior", "drawn", "teachers")  # settings that name files and folders
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """How training goes; the defaults are those of the paper for GlaS.

    Attributes:
        epochs: passes over the training split.
        batch: images per step, over all processes together, at least one for each. Where the last images of an epoch
            are fewer than the processes, they join the batch before.
        optimizer: sgd (with Nesterov momentum, as the paper) or adamw, which learns maps from many drawn images faster.
        lr: learning rate.
        head_lr: factor on the learning rate of everything but the backbone.
        momentum: of SGD.
        weight_decay: of the optimizer.
        lr_factor: the learning rate is multiplied by this ...
        lr_every: ... after every so many epochs.
        lr_floor: smallest learning rate.
        schedule: step, as above; or one-cycle, in which each step has its own rate: from lr / 25 up to lr in the first
            30 % of all steps, then down to lr / 250000, each along a half cosine (Smith and Topin, 2019).
        seed: all randomness is a function of it, the epoch and the sample.
        selection: which epoch is kept: error-loss (lowest validation classification error, then lowest
            cross-entropy), error-latest (lowest error, then the latest epoch, as the authors), last, or pxap-masks
            (highest PxAP on validation masks: not weakly supervised, and the report says so).
        range: how evidence becomes a map that predictions cut: probability (it is one already), learned (an affine map
            and a sigmoid, learned on training images without masks) or image (stretched in every image, as in the
            papers; not on slides). By default probability where evidence is one, else learned.
        threshold: where the map is cut: fixed 0.5, otsu (per image, mask-free) or valid (best on validation masks: the
            report says so).
        monitor: validate on labels only, or also log mask metrics in every epoch (they select nothing).
        precision: auto (bf16 on a GPU that has it, else float32), 32-true, bf16-mixed or 16-mixed.
        channels_last: memory format of the images, which is faster on most hardware.
        compile: torch.compile the training pass; on a CPU it needs a C++ compiler and made the default backbone slower
            (1.7 s a step instead of 0.9 on two cores).
        accelerator: auto, cpu, cuda or mps.
        devices: how many of them on each machine, each with a process of its own; or auto, which is all GPUs.
        nodes: number of machines (under SLURM or torchrun). The images must be the same on all; the run folder is
            needed on the first one alone.
        workers: processes that augment; -1 = one less than the cores, at most 4, and 0 on two cores or fewer.
        cache_gb: memory of each machine for decoded training images, shared out among its processes, each of which
            needs every image in some epoch; above it they are decoded at each use.
    """

    epochs: Count = 80
    batch: Count = 4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 1e-3
    head_lr: Positive = 1.0
    momentum: PartBelowOne = 0.9
    weight_decay: NotNegative = 1e-4
    lr_factor: ShareAboveNone = 0.9
    lr_every: Count = 10
    lr_floor: NotNegative = 1e-7
    schedule: Literal["step", "one-cycle"] = "step"
    seed: Whole = 0
    selection: SelectionRule = "error-loss"
    range: Range | None = None
    threshold: ThresholdRule = "fixed"
    monitor: Literal["labels", "masks"] = "labels"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    channels_last: bool = True
    compile: bool = False
    accelerator: Accelerator = "auto"
    devices: Devices = "auto"
    nodes: Count = 1
    workers: Annotated[Integer, Field(ge=-1)] = -1
    cache_gb: NotNegative = 4.0


@dataclass(frozen=True)
class Published:
    """A published table cell, shown beside ours: percentages, None where the paper has a dash."""

    source: str
    cl_error: Number | None = None
    f1_plus: Number | None = None
    f1_minus: Number | None = None


@dataclass(frozen=True)
class RunConfig(Checked):
    """Everything that a run depends on; `run.yaml` holds it and replays it.

    Attributes:
        method: key of METHODS.
        data: the table.
        fold: which fold of the table is the validation split.
        options: of the method.
        backbone: the feature extractor.
        input: how images reach the network.
        training: how training goes.
        recipe: where the settings came from.
        published: a cell of a published table.
        empty_class: the class whose images have no ROI (normal tissue), or None.
        prior: `prior:NAME` or a model folder whose backbone and decoder the training begins with.
        drawn: a second table, of drawn images with masks, one of which is seen beside each real image.
        teachers: runs or models whose maps are learned from.
        columns: what the table calls its columns, as `image=path,label=diagnosis`, where not so.
    """

    method: str
    data: Path
    fold: Whole | None = None
    options: Any = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    input: InputConfig = field(default_factory=InputConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    recipe: str | None = None
    published: Published | None = None
    empty_class: str | None = None
    prior: str | None = None
    drawn: Path | None = None
    teachers: tuple[Path, ...] = ()
    columns: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.options is None:
            object.__setattr__(self, "options", method_class(self.method).Options())
        if self.input.mean is None or self.input.std is None:
            # Those of the backbone's own weights, by name, so that run.yaml says them.
            mean, std = statistics(self.backbone.backbone) or (HALF, HALF)
            input_config = dataclasses.replace(self.input, mean=self.input.mean or mean, std=self.input.std or std)
            object.__setattr__(self, "input", input_config)


def method_class(name: str) -> type[Any]:
    """The method of this name.

    Raises:
        InputError: names the nearest one.
    """
    if name not in METHODS:
        raise InputError(f"method {name[:100]!r} is unknown{_nearest(name, METHODS)}; `histoloc methods` lists them")
    return METHODS[name]


def strict(kind: type[T], values: Any, where: str) -> T:
    """Make a dataclass from a mapping.

    Args:
        kind: a dataclass, which may hold others.
        values: as read from YAML or JSON.
        where: file name for messages.

    Raises:
        InputError: an unknown key (naming the nearest known one) or a value of the wrong type.
    """
    # The dataclasses inside a list take its rule for unknown keys.
    several: Any = GenericAlias(list, (kind,))
    adapter = TypeAdapter(several, config=ConfigDict(extra="forbid"))
    try:
        return adapter.validate_python([values])[0]
    except ValidationError as error:
        raise InputError(f"{where}: {_sentence(kind, error)}") from error


def _sentence(kind: Any, error: ValidationError) -> str:
    """The first fault of a mapping in words, unknown keys before wrong values."""
    unknown = ("unexpected_keyword_argument", "invalid_key")
    faults = error.errors()
    first = min(faults, key=lambda fault: fault["type"] not in unknown)
    path = [str(part)[:100] for part in first["loc"][1:]]
    key, own = ".".join(path), first.get("ctx", {}).get("error")
    if first["type"] in unknown:
        for name in path[:-1]:
            hint = get_type_hints(kind)[name]  # `Published | None` has two parts
            kind = next(part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part))
        return f"unknown key {key}{_nearest(path[-1], get_type_hints(kind))}; correct or remove it"
    if first["type"] == "missing":
        return f"{key} is missing; add it"
    if first["type"] == "dataclass_type":
        return f"{key or 'this'} must hold `key: value` pairs; correct it"
    if isinstance(own, InputError):  # raised by a dataclass about its own values: it says all there is to say
        return str(own)
    value = repr(first["input"])
    value = value if len(value) <= 100 else f"{value[:100]}..."
    return f"{key} = {value} is wrong ({reason(error, faults.index(first))}); correct it"


def recipe_names() -> list[str]:
    """Names of the recipes that are shipped."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_about(name: str) -> str:
    """The sentence that a shipped recipe says about itself."""
    return str(read_yaml(RECIPES / f"{name}.yaml").get("about", ""))


def read_recipe(name: str) -> dict[str, Any]:
    """A shipped recipe by name, or any YAML file by path: a part of a run's configuration.

    Raises:
        InputError: unknown name, unknown key, wrong value.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        names = recipe_names()
        if name not in names:
            raise InputError(
                f"recipe {name!r} is unknown{_nearest(name, names)}; choose one of {', '.join(names)}, or give the "
                "path of a YAML file"
            )
        path = RECIPES / f"{name}.yaml"
    values = _read(path)
    values.pop("about", None)
    run_config({"data": "unset.csv", **values}, where=f"recipe {name}")
    return values


def run_config(values: Mapping[str, Any], where: str) -> RunConfig:
    """A run's configuration from a mapping as in `run.yaml`; the method's options are checked as well."""
    values = dict(values)
    options = values.pop("options", None) or {}
    if isinstance(options, Mapping) and "empty_class" in options:  # where histoloc 0.1 had it
        options = dict(options)
        values.setdefault("empty_class", options.pop("empty_class"))
    backbone = values.get("backbone") or {}
    if isinstance(values.get("method"), str) and isinstance(backbone, Mapping):
        method = method_class(values["method"])
        values["backbone"] = plain(method.default_backbone) | dict(backbone)
        if isinstance(training := values.get("training") or {}, Mapping):
            values["training"] = {**method.default_training, **training}
    config = strict(RunConfig, values, where)
    method_options = strict(method_class(config.method).Options, options, f"{where}, options of {config.method}")
    return dataclasses.replace(config, options=method_options)


def read_run(path: Path) -> RunConfig:
    """Read `run.yaml`; files and folders that it names are found from any working folder."""
    return run_config(_read(path), where=str(path))


def _read(path: Path) -> dict[str, Any]:
    inputs = (read_json(path.with_name(INPUTS_FILE)) if path.name == RUN_FILE else None) or {}
    return _places(read_yaml(path), partial(located, path.parent, inputs.get("home")))


def write_run(path: Path, config: RunConfig) -> None:
    """Write `run.yaml` atomically; files and folders are named relative to its own."""
    values = _places(plain(config), partial(relative_place, path.parent))
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def without_places(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without the places of files: what they hold is compared in other ways."""
    without = {key: value for key, value in run.items() if key != "columns"}
    return {**without, **dict.fromkeys(PLACES, 0), "teachers": len(run.get("teachers") or ())}


def _places(values: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A run's settings with other names of the files and folders in them."""

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(one) for one in value]
        return change(value) if isinstance(value, str) and value not in ("embedded", "hub", "none") else value

    values = {key: changed(value) if key in PLACES else value for key, value in values.items()}
    backbone = values.get("backbone")
    if isinstance(backbone, Mapping) and "weights" in backbone:
        values["backbone"] = {**backbone, "weights": changed(backbone["weights"])}
    return values


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as plain values for YAML and JSON."""
    return TypeAdapter(Any).dump_python(value, mode="json")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (did you mean {near[0]}?)" if near else ""
