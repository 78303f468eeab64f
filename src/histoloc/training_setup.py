"""What a training begins with: its table, what its model will say of itself, its samples, the weights of a prior."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from histoloc.config import RunConfig, method_class, plain, without_places
from histoloc.data.csv_cells import read_cells
from histoloc.data.table import Table, read_table
from histoloc.data.trainset import TrainSet
from histoloc.errors import InputError
from histoloc.methods import Method
from histoloc.model_folder import ModelConfig, Threshold, empty_index, load_model, read_model_config
from histoloc.nn.average import averaged
from histoloc.nn.decoder import CHANNELS
from histoloc.scale import ALIKE, training_scale
from histoloc.teachers import check_sources
from histoloc.work_folder import INPUTS_FILE, check_inputs, inputs_of, read_json

# Options of a prior that any method which begins with it takes over.
_OF_PRIORS = ("channels", "flips", "scales", "structure_weight")


def check_splits(config: RunConfig, table: Table) -> None:
    """Make sure, before anything is trained, that there is what training, selection and threshold need.

    Raises:
        InputError: a split has no rows, or masks are asked for and the validation split has none.
    """
    if method_class(config.method).supervision:
        table.split("train")
    check_sources(config, table)
    if class_names(config, table):
        table.check_classes()
        table.split("valid")
    masks = sum(sample.mask is not None for sample in table.samples if sample.split == "valid")
    for option, value in (("selection", "pxap-masks"), ("threshold", "valid"), ("monitor", "masks")):
        if getattr(config.training, option) == value and not masks:
            raise InputError(
                f"{table.path}: --{option} {value} needs masks, and no row of split 'valid' has one; fill the column "
                f"mask, or leave --{option} out"
            )


def describe(config: RunConfig, table: Table) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration that the model folder will carry, and what the user must know about it."""
    empty_index(config.empty_class, table.classes, str(config.data))
    provenance = {
        "table": config.data.name,
        "fold": config.fold,
        "seed": config.training.seed,
        "recipe": config.recipe,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"drawn": config.drawn.name} if config.drawn else {}),
        **({"prior": config.prior} if config.prior else {}),
        **{package: version(package) for package in ("histoloc", "torch", "timm")},
    }
    described = ModelConfig(
        config.method,
        class_names(config, table),
        config.options,
        config.backbone,
        config.input,
        # "valid" is chosen after the last epoch.
        threshold=Threshold("otsu", None) if config.training.threshold == "otsu" else Threshold(),
        empty_class=config.empty_class,
        range=config.training.range,
        supervision=supervision(config),
        provenance=provenance,
    )
    return training_scale(described, table)


def class_names(config: RunConfig, table: Table) -> tuple[str, ...]:
    """Those of the table; none where a method learns from drawn images alone."""
    return () if method_class(config.method).supervision == {"synthetic"} else table.classes


def supervision(config: RunConfig) -> tuple[str, ...]:
    """What a run learns from: the method's own supervision, and that of its prior, drawn images and teachers.

    Masks of a table that does not say which scene its images were drawn of, in a column drawn_scene, count as people's.
    """
    own = method_class(config.method).learns_from(config.options)
    sources = set(own)
    for source in (*([Path(config.prior)] if config.prior else []), *config.teachers):
        sources |= set(read_model_config(source).supervision)
    drawn = config.drawn or (config.data if "synthetic" in own else None)
    if drawn is not None:
        is_drawn = all(read_cells(drawn, (), ("drawn_scene",))["drawn_scene"])
        sources |= {"synthetic"} if is_drawn else {"synthetic", "pixel"}
    return tuple(sorted(sources))


def settings(config: RunConfig) -> dict[str, Any]:
    """What must be the same when a run is resumed; where the rate depends on the number of epochs, that too."""
    cycle = {"epochs of one-cycle": config.training.epochs} if config.training.schedule == "one-cycle" else {}
    run: dict[str, Any] = without_places(plain(config)) | {
        "prior": config.prior is not None,
        "drawn": config.drawn is not None,
    }
    return {**run, "backbone": {**run["backbone"], "weights": Path(config.backbone.weights).name}, **cycle}


def drawn_inputs(config: RunConfig, out: Path) -> dict[str, Any]:
    """What the run keeps of its table of drawn images.

    Raises:
        InputError: the run was begun with another content of it.
    """
    if config.drawn is None:
        return {}
    inputs = inputs_of(read_table(config.drawn))
    if (before := (read_json(out / INPUTS_FILE) or {}).get("drawn")) is not None and (out / "last.ckpt").exists():
        check_inputs(out, before, inputs)
    return {"drawn": inputs}


def training_set(
    config: RunConfig, described: ModelConfig, table: Table, cache_bytes: int, *, progress: bool
) -> TrainSet:
    """The samples of split train, with masks where the method learns from them, and with a drawn image each.

    Raises:
        InputError: an image or a mask cannot be used, or the scale of the drawn images is not that of the others.
    """
    common: dict[str, Any] = {"cache_bytes": cache_bytes, "progress": progress}
    drawn, seed, seen = None, config.training.seed, described.input
    if config.drawn is not None:
        if described.input.mpp is None:
            raise InputError(
                f"--drawn {config.drawn}: drawn images have a scale in µm/px, so the others must be seen at one; give "
                "--mpp"
            )
        other = read_table(config.drawn)
        drawn = TrainSet(other, other.split("train"), seen, seed, with_masks=True, **common)
        seen = replace(seen, zoom=(1.0, 1.0))  # real images have structures of all sizes
    masks = config.drawn is None and "synthetic" in method_class(config.method).supervision
    common |= {"with_masks": masks or "pixel" in method_class(config.method).supervision, "drawn": drawn}
    return TrainSet(table, table.split("train"), seen, seed, empty_class=config.empty_class, **common)


def prior_settings(method: str, prior: str) -> dict[str, dict[str, Any]]:
    """What a run needs besides to begin with a prior, by section: its network, its scale, and options.

    Raises:
        InputError: there is no such prior.
    """
    config = read_model_config(Path(prior))
    scale = {} if config.mpp is None else {"mpp": config.mpp, "small_side": 0}
    backbone = plain(config.backbone)
    backbone.pop("weights")
    kind, theirs = method_class(method), vars(config.options)
    shared = {name: theirs[name] for name in _OF_PRIORS if name in theirs and hasattr(kind.Options(), name)}
    return {
        "options": shared | kind.with_prior,
        "backbone": backbone,
        "input": plain(config.input) | scale,
    }


def begin_with_prior(method: Method, described: ModelConfig, prior: str) -> tuple[str, ...]:
    """Give a network the backbone and the decoder of a prior.

    Args:
        method: the network; in every process the same.
        described: its configuration.
        prior: `prior:NAME` or a folder.

    Returns:
        What the user must know, one sentence each.

    Raises:
        InputError: the weights do not fit, or were trained on images that were normalised in another way.
    """
    source, config = load_model(Path(prior))
    weights, own = located(averaged(source.state_dict())), located(method.state_dict())
    wrong = [name for name in {**weights, **own} if name not in weights or name not in own]
    theirs, ours = (getattr(of.options, "channels", CHANNELS) for of in (config, described))
    if weights and not wrong and theirs != ours:
        raise InputError(
            f"--prior {prior}: its decoder has {theirs} channels and that of {described.method} {ours}; give a prior "
            f"that was trained with --channels {ours}"
        )
    wrong += [name for name in weights if name in own and weights[name].shape != own[name].shape]
    if wrong or not weights:
        raise InputError(
            f"--prior {prior}: the {config.method}'s backbone and decoder do not fit {described.method} "
            f"({wrong[0] if wrong else 'it has neither'}); give a method with a decoder, and --backbone "
            f"{config.backbone.backbone} --stride {config.backbone.stride} as the prior has them"
        )
    if (config.input.mean, config.input.std) != (described.input.mean, described.input.std):
        raise InputError(
            f"--prior {prior}: was trained on images normalised by mean {config.input.mean} and std "
            f"{config.input.std}; give the same --mean and --std"
        )
    if method.unit == "logit" and config.learned is not None:  # its map is not the sigmoid of its scores
        centre, slope = config.learned.centre[0], config.learned.slope[0]
        weights["decoder.head.weight"] = slope * weights["decoder.head.weight"]
        weights["decoder.head.bias"] = slope * (weights["decoder.head.bias"] - centre)
    method.load_state_dict(weights, strict=False)
    scale, own_scale = config.mpp, described.mpp
    if scale is None or own_scale is None or max(scale, own_scale) <= ALIKE * min(scale, own_scale):
        return ()
    return (f"the prior looks at {scale:.4g} µm/px and this training at {own_scale:.4g}: give --mpp {scale:.4g}",)


def located(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by which a method with a decoder localizes."""
    return {name: value for name, value in state.items() if name.startswith(("backbone.", "decoder."))}
