"""The model folder in and out: `config.json` and `model.safetensors`. The only file that knows this format."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from histoloc.bounds import Checked, Count, Number, Positive, Share, Whole
from histoloc.config import SelectionRule, ThresholdRule, method_class, plain, strict
from histoloc.data.transforms import HALF, InputConfig
from histoloc.errors import InputError
from histoloc.methods import Method, Setting
from histoloc.nn.backbone import BackboneConfig
from histoloc.options import ALL, MapOptions
from histoloc.types import Range
from histoloc.work_folder import atomic_path, read_json, write_json, write_text

FORMAT = 2
PRIORS = Path(__file__).parent / "priors"  # a model folder for each prior that is shipped
_SHIPPED = "prior:"
IMAGES_FILE = "images.txt"  # what the model learned from


@dataclass(frozen=True)
class Threshold:
    """Where the ROI map is cut: rule, value (None for otsu, which finds one per image), masks and map that chose it."""

    rule: ThresholdRule = "fixed"
    value: Share | None = 0.5
    masks_used: Whole = 0
    range: Range | None = None

    @property
    def uses_masks(self) -> bool:
        """Whether validation masks chose the threshold."""
        return self.masks_used > 0


@dataclass(frozen=True)
class Selection:
    """How the epoch was chosen, which one, and how many validation masks were looked at for it."""

    rule: SelectionRule | None = None
    epoch: Whole | None = None
    masks_used: Whole = 0
    uses_masks: bool = False


@dataclass(frozen=True)
class LearnedRange(Checked):
    """How evidence becomes a ROI map that means the same in every image; learned from training images without masks.

    Attributes:
        centre: evidence at which the map is 0.5: one number per class, or one where all share a map.
        slope: factors > 0 on the distance from the centre, before the sigmoid.
        share: of the training images that is ROI at 0.5; the same share as by the papers' per-image rule.
        images: how many training images it was learned from.
    """

    centre: tuple[Number, ...]
    slope: tuple[Positive, ...]
    share: tuple[Number, ...]
    images: Whole

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.centre or len(self.centre) != len(self.slope):
            raise InputError(
                f"learned: centre {list(self.centre)} and slope {list(self.slope)} must be equally many numbers; train "
                "again, or set learned to null"
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
        mpp: micrometres per pixel at which the network looks: the median of its training images, where known.
        shorter_side: of the training images in pixels before they are resized, their median.
        threshold: where the map is cut.
        selection: how the epoch was chosen.
        empty_class: the class whose images have no ROI, or None.
        extent: (shorter, longer) side in pixels of the largest training images, as the network sees them.
        range: how evidence becomes a map; None for probability where it is one, else learned.
        learned: the range that training learned; None where the method needs none, or where none could be learned.
        supervision: what it learned from, as methods say it, with that of its prior and its teachers; by default the
            method's own.
        provenance: table, fold, seed, versions, date.
        weights_sha256: of `model.safetensors`.
        format: version of this format.
    """

    method: str
    classes: tuple[str, ...]
    options: Any = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    input: InputConfig = field(default_factory=InputConfig)
    mpp: Positive | None = None
    shorter_side: Count | None = None
    threshold: Threshold = field(default_factory=Threshold)
    selection: Selection = field(default_factory=Selection)
    empty_class: str | None = None
    extent: tuple[Count, Count] | None = None
    range: Range | None = None
    learned: LearnedRange | None = None
    supervision: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        method = method_class(self.method)
        if not self.supervision:
            object.__setattr__(self, "supervision", tuple(sorted(method.supervision)))

    @property
    def structure(self) -> str | None:
        """What a model without classes looks for, as `gland`, where who made it wrote that down."""
        return self.provenance.get("structure") if not self.classes else None


def build_method(config: ModelConfig, *, load_backbone: bool) -> Method:
    """The network with fresh heads, and with the backbone's own weights where `load_backbone`."""
    kind = method_class(config.method)
    # A model folder has every weight: building from it must neither ask a hub nor read a file.
    backbone = config.backbone if load_backbone else dataclasses.replace(config.backbone, weights="none")
    setting = Setting(
        config.classes,
        backbone,
        config.input.mean or HALF,
        config.input.std or HALF,
        empty_index(config.empty_class, config.classes, "the table"),
    )
    return kind(setting, config.options if config.options is not None else kind.Options())


def empty_index(name: str | None, classes: Sequence[str], owner: str) -> int | None:
    """Index of the class without ROI.

    Raises:
        InputError: it is no class of `owner`.
    """
    if name is not None and not classes:
        raise InputError(f"--empty-class {name}: {owner} has no classes; leave --empty-class out")
    if name is not None and name not in classes:
        raise InputError(f"--empty-class {name!r} is not a class of {owner}; choose one of {list(classes)}")
    return None if name is None else list(classes).index(name)


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
    values = read_json(path, "give a folder that histoloc wrote") or {}
    if "method" not in values or "weights_sha256" not in values:
        raise InputError(f"{path}: not a histoloc model; give a folder that `histoloc train` wrote")
    if values.get("format") == 1:
        values = _from_format_1(values)
    if values.get("format") != FORMAT:
        raise InputError(
            f"{path}: has format {values.get('format')}, this histoloc reads {FORMAT}; use the version that wrote it"
        )
    options = values.pop("options", None) or {}
    config = strict(ModelConfig, values, str(path))
    method_options = strict(method_class(config.method).Options, options, f"{path}, options")
    return dataclasses.replace(config, options=method_options)


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """What histoloc 0.1 wrote: no range of today's kind, µm/px before resizing, the class without ROI as an option."""
    values = {key: value for key, value in values.items() if key != "evidence_range"} | {"format": FORMAT}
    options = dict(values.get("options") or {})
    values["empty_class"] = options.pop("empty_class", None)
    small_side = (values.get("input") or {}).get("small_side")
    side, mpp = values.get("shorter_side"), values.get("mpp")
    if mpp and small_side:
        values["mpp"] = mpp * side / small_side if side else None
    return values | {"options": options}


def save_images(folder: Path, marks: Collection[str]) -> None:
    """Write the marks (`fingerprint.image_marks`) of what a model learned from, itself or by prior and teachers."""
    write_text(folder / IMAGES_FILE, "".join(f"{mark}\n" for mark in sorted(marks)))


def images_seen(folder: Path) -> frozenset[str]:
    """What `save_images` wrote; nothing for priors that are shipped, which saw drawn images alone.

    Raises:
        InputError: no model folder, or it does not say it.
    """
    if is_shipped(folder):
        return frozenset()
    path = find_model(folder) / IMAGES_FILE
    try:
        return frozenset(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read, and says which images the model learned from; where histoloc 0.2 trained it, "
            "`histoloc train METHOD --data TABLE --out RUN --resume` writes it"
        ) from error


def map_classes(folder: Path, options: MapOptions) -> list[str | None]:
    """Whose maps are asked for: of one class, of every class with ROI, or None for the class that is predicted.

    Raises:
        InputError: as `load_model`, where those of every class are asked for; or the model has no classes.
    """
    if options.map_class != ALL:
        return [options.map_class]
    config = read_model_config(folder)
    if not config.classes:
        raise InputError(no_classes(ALL))
    return [name for name in config.classes if name not in (config.empty_class, options.empty_class)]


def no_classes(name: str) -> str:
    """What is said where the map of a class is asked of a model that has none."""
    return f"--class {name}: the model has no classes, and one map for all; leave --class out"


def find_model(folder: Path) -> Path:
    """The model folder itself, `model/` below a run, or the shipped one that `prior:NAME` names.

    Raises:
        InputError: neither is one, or no such prior is shipped.
    """
    if is_shipped(folder):
        names = shipped_priors()
        if (name := str(folder).removeprefix(_SHIPPED)) in names:
            return PRIORS / name
        choice = f"choose one of {', '.join(_SHIPPED + name for name in names)}" if names else "none is"
        raise InputError(f"{folder}: no prior of this name is shipped; {choice}, or give a folder")
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    raise InputError(f"{folder}: no model folder (no config.json here or in model/); give a run or its model folder")


def is_shipped(model: Path) -> bool:
    """Whether a model is named as `prior:NAME`, not by its folder."""
    return str(model).startswith(_SHIPPED)


def shipped_priors() -> list[str]:
    """Names of the priors that come with histoloc."""
    return sorted(file.parent.name for file in PRIORS.glob("*/config.json"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
