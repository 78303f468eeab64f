"""histoloc: weakly-supervised localization in histology.

    import histoloc
    result = histoloc.load("runs/sem").predict("image.png")
    result.label, result.roi, result.mask

Names are loaded when they are first used, so that `import histoloc` alone loads neither torch nor Fabric.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoloc.config import RunConfig as RunConfig
    from histoloc.config import run_config as run_config
    from histoloc.data.table import read_table as read_table
    from histoloc.errors import InputError as InputError
    from histoloc.evaluation import evaluate as evaluate
    from histoloc.localization_files import predict as predict
    from histoloc.methods import METHODS as METHODS
    from histoloc.prediction import Predictor as Predictor
    from histoloc.prediction import load as load
    from histoloc.report import write_report as write_report
    from histoloc.slide_cohort import predict_slides as predict_slides
    from histoloc.slides.reader import open_slide as open_slide
    from histoloc.training import train as train
    from histoloc.types import Localization as Localization

__version__ = "0.2.0"

_ROOMS = {
    "config": ("RunConfig", "run_config"),
    "data.table": ("read_table",),
    "errors": ("InputError",),
    "evaluation": ("evaluate",),
    "localization_files": ("predict",),
    "methods": ("METHODS",),
    "prediction": ("Predictor", "load"),
    "report": ("write_report",),
    "slide_cohort": ("predict_slides",),
    "slides.reader": ("open_slide",),
    "training": ("train",),
    "types": ("Localization",),
}
__all__ = [name for names in _ROOMS.values() for name in names]  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return ["__version__", *__all__]


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"histoloc.{room}"), name)
            return value
    raise AttributeError(f"module 'histoloc' has no attribute {name!r}")
