"""Small networks and small pictures, so that every method can be tried in many ways."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from histoloc.config import RunConfig, method_class
from histoloc.data.transforms import InputConfig, load_tensor, normalise
from histoloc.datasets.synthetic.dataset import CLASSES, render
from histoloc.maps import roi
from histoloc.methods import Method
from histoloc.methods.maxmin import MaxMin
from histoloc.model_folder import ModelConfig, build_method
from histoloc.nn.backbone import BackboneConfig
from histoloc.training import train
from histoloc.types import Batch
from histoloc.work_folder import atomic_path

CNN, VIT = "test_efficientnet", "test_vit"


def build(
    name: str,
    *,
    backbone: str = CNN,
    stride: int = 0,
    classes: Sequence[str] = CLASSES,
    empty_class: str | None = None,
    **options: Any,
) -> Method:
    """A method with the same random weights in every call, in eval mode."""
    torch.manual_seed(0)
    chosen = method_class(name).Options(**options)
    weights = BackboneConfig(backbone, stride, weights="none")
    config = ModelConfig(name, tuple(classes), chosen, weights, empty_class=empty_class)
    return build_method(config, load_backbone=True).eval()


def maxmin(**options: Any) -> MaxMin:
    """The max-min method; see `build`."""
    method = build("maxmin", **options)
    assert isinstance(method, MaxMin)
    return method


def terms(method: Method, batch: Batch, epoch: int = 0) -> dict[str, Tensor]:
    """Of the method's loss."""
    return method.loss(method(batch.image), batch, epoch)


def answer(method: Method, image: Tensor) -> tuple[Tensor, Tensor]:
    """Class probabilities (B, K), and the ROI map (B, 1, H, W) of the predicted class, by the papers' rule."""
    with torch.no_grad():
        output = method.evidence(image)
    calibration = method.calibration("image" if method.unit == "score" else None)
    size = (image.shape[-2], image.shape[-1])
    return output.logits.softmax(dim=1), roi(output, output.logits.argmax(dim=1), calibration, size)


def noise(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def noise_batch(labels: list[int], height: int = 64, width: int = 64, *, masks: bool = False) -> Batch:
    """Noise; with masks for a method with pixel supervision, without for others, as in training."""
    names = tuple(f"{i}.png" for i in range(len(labels)))
    image = noise(len(labels), height, width)
    return Batch(image, torch.tensor(labels), (image[:, :1] > 0).float() if masks else None, names)


def glands(count: int, side: int, *, first: int = 0, masks: bool = False) -> Batch:
    """Synthetic glands number `first` and on, the classes by turns; with masks for pixel supervision."""
    images: list[Tensor] = []
    truth: list[Tensor] = []
    config = InputConfig(small_side=0, crop=side)
    for index in range(first, first + count):
        picture = render(CLASSES[index % 2], seed=0, index=index, height=side, width=side)
        images.append(normalise(load_tensor(picture.image, config), config))
        truth.append(torch.from_numpy(picture.instances > 0).float()[None])
    names = tuple(f"{i}.png" for i in range(first, first + count))
    labels = torch.arange(first, first + count) % 2
    return Batch(torch.stack(images), labels, torch.stack(truth) if masks else None, names)


def resume_and_compare(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train into `folder/stopped`, stopped in the second epoch and resumed, and `folder/whole`: bits must be equal."""
    written: list[Path] = []

    def stop_in_the_second_epoch(path: Path) -> AbstractContextManager[Path]:
        if path.name == "log.csv":
            written.append(path)
            if len(written) == 2:
                raise KeyboardInterrupt
        return atomic_path(path)

    with monkeypatch.context() as patch:
        # `histoloc.train` by name is the function.
        patch.setattr(sys.modules["histoloc.training"], "atomic_path", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder / "stopped", progress=False)
    train(config, folder / "stopped", resume=True, progress=False)
    train(config, folder / "whole", progress=False)
    weights = [(folder / run / "model" / "model.safetensors").read_bytes() for run in ("stopped", "whole")]
    assert weights[0] == weights[1]
