"""histoloc: weakly-supervised localization in histology.

    import histoloc
    found = histoloc.load("runs/sem").predict("image.png")
    found.label, found.roi, found.mask

Names are loaded when they are first used, so that `import histoloc` alone loads neither torch nor Fabric.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoloc.config import RunConfig, run_config
    from histoloc.data.table import read_table
    from histoloc.errors import InputError
    from histoloc.evaluation import evaluate
    from histoloc.methods import METHODS
    from histoloc.predict_files import predict_files as predict
    from histoloc.prediction import Predictor, load
    from histoloc.report import write_report
    from histoloc.slide_maps.cohort import predict_slides
    from histoloc.slides.reader import open_slide
    from histoloc.training import train
    from histoloc.types import Localization

__version__ = "0.2.0"

_ROOMS = {
    "InputError": ("histoloc.errors", "InputError"),
    "Localization": ("histoloc.types", "Localization"),
    "METHODS": ("histoloc.methods", "METHODS"),
    "Predictor": ("histoloc.prediction", "Predictor"),
    "RunConfig": ("histoloc.config", "RunConfig"),
    "evaluate": ("histoloc.evaluation", "evaluate"),
    "load": ("histoloc.prediction", "load"),
    "open_slide": ("histoloc.slides.reader", "open_slide"),
    "predict": ("histoloc.predict_files", "predict_files"),
    "predict_slides": ("histoloc.slide_maps.cohort", "predict_slides"),
    "read_table": ("histoloc.data.table", "read_table"),
    "run_config": ("histoloc.config", "run_config"),
    "train": ("histoloc.training", "train"),
    "write_report": ("histoloc.report", "write_report"),
}

__all__ = [
    "METHODS",
    "InputError",
    "Localization",
    "Predictor",
    "RunConfig",
    "evaluate",
    "load",
    "open_slide",
    "predict",
    "predict_slides",
    "read_table",
    "run_config",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'histoloc' has no attribute {name!r}")
    room, attribute = _ROOMS[name]
    value = globals()[name] = getattr(import_module(room), attribute)
    return value
