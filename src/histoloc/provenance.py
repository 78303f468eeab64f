"""What a model folder says about where its weights come from."""

import dataclasses
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median

from histoloc.checkpoint import ModelConfig, Selection, Threshold
from histoloc.config import RunConfig, TrainingConfig
from histoloc.data.pixels import shorter_side
from histoloc.data.table import Table
from histoloc.evidence import evenly
from histoloc.select import number_of_masks


def describe(config: RunConfig, table: Table) -> ModelConfig:
    """The configuration that the model folder will carry."""
    mpp = sorted({s.mpp for s in table.samples if s.mpp is not None})
    provenance = {
        "table": config.data.name,
        "fold": config.fold,
        "seed": config.training.seed,
        "recipe": config.recipe,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **{f"{package}": version(package) for package in ("histoloc", "torch", "timm")},
    }
    return ModelConfig(
        config.method,
        table.classes,
        config.options,
        config.backbone,
        config.input,
        mpp[len(mpp) // 2] if mpp else None,
        _shorter_side(table),
        # "valid" is chosen after the last epoch.
        Threshold("otsu", None) if config.training.threshold == "otsu" else Threshold(),
        provenance=provenance,
    )


def _shorter_side(table: Table) -> int | None:
    """Median over at most 50 training images, evenly spaced."""
    samples = [sample for sample in table.samples if sample.split == "train"]
    if not samples:
        return None
    return round(median(shorter_side(sample) for sample in evenly(samples, 50)))


def describe_selected(
    described: ModelConfig, row: dict[str, float], training: TrainingConfig, table: Table
) -> ModelConfig:
    """The same with the epoch that was selected, a row of the log."""
    masks = number_of_masks(table) if training.selection == "pxap-masks" else 0
    selection = Selection(training.selection, int(row["epoch"]), masks, masks > 0)
    return dataclasses.replace(described, selection=selection)
