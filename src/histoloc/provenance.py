"""What a model folder says about where its weights come from."""

import dataclasses
from datetime import UTC, datetime
from importlib.metadata import version

from histoloc.config import RunConfig, TrainingConfig
from histoloc.data.table import Table
from histoloc.model_folder import ModelConfig, Selection, Threshold, empty_index
from histoloc.scale import training_scale
from histoloc.selection import number_of_masks


def describe(config: RunConfig, table: Table) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration that the model folder will carry, and what the user must know about it."""
    provenance = {
        "table": config.data.name,
        "fold": config.fold,
        "seed": config.training.seed,
        "recipe": config.recipe,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **{f"{package}": version(package) for package in ("histoloc", "torch", "timm")},
    }
    empty_index(config.empty_class, table.classes, str(config.data))
    scale = training_scale(config.input, table)
    described = ModelConfig(
        config.method,
        table.classes,
        config.options,
        config.backbone,
        scale.input,
        scale.mpp,
        scale.shorter_side,
        # "valid" is chosen after the last epoch.
        Threshold("otsu", None) if config.training.threshold == "otsu" else Threshold(),
        empty_class=config.empty_class,
        extent=scale.extent,
        range=config.training.range,
        provenance=provenance,
    )
    return described, scale.notes


def describe_selected(
    described: ModelConfig, row: dict[str, float], training: TrainingConfig, table: Table
) -> ModelConfig:
    """The same with the epoch that was selected, a row of the log."""
    masks = number_of_masks(table) if training.selection == "pxap-masks" else 0
    selection = Selection(training.selection, int(row["epoch"]), masks, masks > 0)
    return dataclasses.replace(described, selection=selection)
