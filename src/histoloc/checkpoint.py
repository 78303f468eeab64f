"""The model folder in and out: `config.json` and `model.safetensors`. The only file that knows this format."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from histoloc.config import SelectionRule, ThresholdRule, method_class, plain, strict
from histoloc.data.transforms import InputConfig
from histoloc.errors import InputError
from histoloc.files import atomic_path, write_json
from histoloc.methods import Method, Setting
from histoloc.nn.backbone import BackboneConfig, build_backbone

FORMAT = 1


@dataclass(frozen=True)
class Threshold:
    """Where the ROI map is cut: rule, value (None for otsu, which finds one per image), masks that chose it."""

    rule: ThresholdRule = "fixed"
    value: float | None = 0.5
    masks_used: int = 0

    @property
    def uses_masks(self) -> bool:
        """Whether validation masks chose the threshold."""
        return self.masks_used > 0


@dataclass(frozen=True)
class Selection:
    """How the epoch was chosen, which one, and how many validation masks were looked at for it."""

    rule: SelectionRule | None = None
    epoch: int | None = None
    masks_used: int = 0
    uses_masks: bool = False


@dataclass(frozen=True)
class EvidenceRange:
    """Between which values a method's evidence becomes a ROI map; learned from the training images and their labels.

    Attributes:
        low: evidence at and below which there is no ROI: one number per class, or one where all share a map.
        high: evidence at and above which there is nothing but ROI, likewise; above `low`.
        images: how many training images it was learned from.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    images: int

    def __post_init__(self) -> None:
        pairs = list(zip(self.low, self.high, strict=False))
        # Written so that NaN fails too.
        if not (pairs and len(self.low) == len(self.high) and all(-math.inf < a < b < math.inf for a, b in pairs)):
            raise InputError(
                f"evidence_range: low {list(self.low)} and high {list(self.high)} must be equally many finite numbers, "
                "each high above its low; train again, or set evidence_range to null"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to predict.

    Attributes:
        method: key of METHODS.
        classes: class names in the order of the scores.
        options: of the method.
        backbone: the feature extractor (its weights are in the model folder).
        input: resizing and normalisation.
        mpp: micrometres per pixel of the training images, where known.
        shorter_side: of the training images in pixels, their median: where images are resized on their way to the
            network, only tiles of this side are seen at the scale of training.
        threshold: where the map is cut.
        selection: how the epoch was chosen.
        evidence_range: reads the method's evidence where images must be comparable, as the tiles of a slide; None
            where the method needs none, or where none was found.
        provenance: table, fold, seed, versions, date.
        weights_sha256: of `model.safetensors`.
        format: version of this format.
    """

    method: str
    classes: tuple[str, ...]
    options: Any = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    input: InputConfig = field(default_factory=InputConfig)
    mpp: float | None = None
    shorter_side: int | None = None
    threshold: Threshold = field(default_factory=Threshold)
    selection: Selection = field(default_factory=Selection)
    evidence_range: EvidenceRange | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    format: int = FORMAT


def build_method(config: ModelConfig, *, load_backbone: bool) -> Method:
    """The network with fresh heads, and with the backbone's own weights where `load_backbone`."""
    kind = method_class(config.method)
    # A model folder has every weight: building from it must neither ask a hub nor read a file.
    backbone = config.backbone if load_backbone else dataclasses.replace(config.backbone, weights="none")
    setting = Setting(config.classes, backbone, config.input.mean, config.input.std, build_backbone)
    return kind(setting, config.options if config.options is not None else kind.Options())


def save_model(folder: Path, weights: Mapping[str, torch.Tensor], config: ModelConfig) -> None:
    """Write a model folder: weights first, then the configuration that carries their checksum."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    path = folder / "model.safetensors"
    with atomic_path(path) as temporary:
        # Not save_file: it makes a file that only its owner may read, and hides a full disk from atomic_path.
        temporary.write_bytes(save(tensors))
    config = dataclasses.replace(config, weights_sha256=_sha256(path))
    write_json(folder / "config.json", plain(config))


def load_model(folder: Path) -> tuple[Method, ModelConfig]:
    """Open a model folder, or a run that holds one.

    Returns:
        The method in eval mode on the CPU, and its configuration.

    Raises:
        InputError: no model folder, a foreign or corrupted one, weights that do not fit.
    """
    config = read_model_config(folder)
    path = find_model(folder) / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: is missing; copy the whole model folder, or finish training with --resume")
    if _sha256(path) != config.weights_sha256:
        raise InputError(
            f"{path}: is not the file that config.json describes (checksum differs); copy the model folder again, or "
            "finish training with --resume"
        )
    method = build_method(config, load_backbone=False)
    try:
        method.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: these weights do not fit {config.method} ({detail}); train again") from error
    return method.eval(), config


def read_model_config(folder: Path) -> ModelConfig:
    """Read and check `config.json` of a model folder or a run."""
    path = find_model(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); give a folder that histoloc wrote") from error
    if not isinstance(values, dict) or "method" not in values or "weights_sha256" not in values:
        raise InputError(f"{path}: not a histoloc model; give a folder that `histoloc train` wrote")
    if values.get("format") != FORMAT:
        raise InputError(
            f"{path}: has format {values.get('format')}, this histoloc reads {FORMAT}; use the version that wrote it"
        )
    options = values.pop("options", None) or {}
    config = strict(ModelConfig, values, str(path))
    chosen = strict(method_class(config.method).Options, options, f"{path}, options")
    return dataclasses.replace(config, options=chosen)


def find_model(folder: Path) -> Path:
    """The model folder itself, or `model/` below a run.

    Raises:
        InputError: neither is one.
    """
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    raise InputError(f"{folder}: no model folder (no config.json here or in model/); give a run or its model folder")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
