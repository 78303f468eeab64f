"""Which epoch is kept, and where its maps are cut: by labels, or, where asked for, by validation masks."""

import dataclasses
from pathlib import Path

import torch

from histoloc.config import RunConfig, TrainingConfig, method_class
from histoloc.data.table import Table
from histoloc.errors import InputError
from histoloc.measure import measure, model_localizes
from histoloc.model_folder import Threshold, load_model, read_model_config, save_model
from histoloc.prediction import Predictor


def selection_key(row: dict[str, float], training: TrainingConfig) -> tuple[float, ...]:
    """Sort key of an epoch: the largest is selected, the latest of equal ones."""
    error = row.get("valid/cl_error", 0.0)
    keys: dict[str, tuple[float, ...]] = {
        "error-loss": (-error, -row.get("valid/cross_entropy", 0.0)),
        "error-latest": (-error,),
        "last": (),
        "pxap-masks": (row.get("valid/pxap", 0.0),),
    }
    return keys[training.selection]


def check_splits(config: RunConfig, table: Table) -> None:
    """Make sure, before anything is trained, that there is what training, selection and threshold need.

    Raises:
        InputError: a split has no rows, or masks are asked for and the validation split has none.
    """
    if method_class(config.method).supervision:
        table.split("train")
    table.split("valid")
    wanted = {"selection": "pxap-masks", "threshold": "valid", "monitor": "masks"}
    for option, value in wanted.items():
        if getattr(config.training, option) == value and not number_of_masks(table):
            raise InputError(
                f"{table.path}: --{option} {value} needs masks, and no row of split 'valid' has one; fill the column "
                f"mask, or leave --{option} out"
            )


def number_of_masks(table: Table) -> int:
    """How many validation images have a mask."""
    return sum(sample.mask is not None for sample in table.split("valid"))


def choose_threshold(model: Path, table: Table, device: torch.device | str = "cpu") -> None:
    """Cut the maps of a model where the mean of F1⁺ and F1⁻ on the validation masks is highest, and write that down.

    The thresholds 0, 0.01, ..., 1 are tried; of equal ones the lowest is taken. A model whose threshold was chosen
    before is left as it is.

    Args:
        model: the model folder, which is rewritten.
        table: its validation split is looked at.
        device: where to compute.

    Raises:
        InputError: the validation masks hold no ROI, or nothing else.
    """
    if read_model_config(model).threshold.rule == "valid":
        return
    method, config = load_model(model)
    predictor = Predictor(method, config, device)
    localizes = model_localizes(predictor, threshold=0.5)
    metrics = measure(localizes, table, table.split("valid"), empty_class=config.empty_class).metrics
    best = metrics.compute(bootstrap=0).oracle_threshold.value
    if best is None:
        raise InputError(
            f"{table.path}: --threshold valid needs both ROI and background in the masks of split 'valid'; correct the "
            "masks, or evaluate the model as it is, cut at 0.5"
        )
    threshold = Threshold("valid", best, number_of_masks(table), predictor.calibration.range)
    save_model(model, method.state_dict(), dataclasses.replace(config, threshold=threshold))
