"""What the rows of a benchmark take from the prior of their seed: its weights, its network and input, drawn images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from histoloc.benchmark.presets import Choices
from histoloc.benchmark.rows import Row
from histoloc.data.table import Table
from histoloc.errors import InputError
from histoloc.model_folder import ModelConfig, read_model_config
from histoloc.prior import scales_and_crop
from histoloc.training_setup import prior_settings

# The methods that begin with a prior randomise colours; another row says its own.
JITTER = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)


class SeedPrior(NamedTuple):
    """The prior of a seed, its configuration, and the side of the training crop that fits a table's images."""

    path: Path
    config: ModelConfig
    crop: int


def seed_prior(path: Path, table: Table) -> SeedPrior:
    """The prior of a seed, for the images of a table.

    Raises:
        InputError: it is none, or it cannot look at the images.
    """
    config = read_model_config(path)
    if config.mpp is None:
        raise InputError(f"{path}: does not say at how many µm/px it looks; train it on a table with the column mpp")
    return SeedPrior(path, config, scales_and_crop(table.samples, config, str(table.path))[1])


def prior_values(row: Row, prior: SeedPrior) -> Mapping[str, Any]:
    """What a run's configuration has from a prior: `prior`, `options`, `backbone`, `input`."""
    name = {} if row.prior == "input" else {"prior": str(prior.path)}
    if row.prior in ("alone", "adapted"):
        return name
    needed = prior_settings(row.method, str(prior.path))
    return {**name, **needed, "input": {**needed["input"], **JITTER, "crop": prior.crop}}


def drawn_of(choices: Choices, seed: int) -> Path:
    """Where the drawn images of a seed are listed."""
    return choices.out / "drawn" / f"seed{seed}" / "table.csv"
