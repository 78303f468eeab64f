"""The maps of training images that a stage learns from, by teachers or by the method itself."""

from typing import Any

import torch
from torch import Tensor

from histoloc.config import RunConfig
from histoloc.data.trainset import TrainSet
from histoloc.data.transforms import InputConfig, normalise
from histoloc.methods import Method
from histoloc.progress import Bar
from histoloc.teachers import targets


def stage_targets(
    config: RunConfig, samples: TrainSet, seen_as: InputConfig, method: Method, fabric: Any, stage: int
) -> list[Tensor] | None:
    """What a method learns from in a stage: of every training image (1, h, w) uint8, 0 to 255 for 0 to 1.

    Args:
        config: of the run, which names its teachers.
        samples: the training images, at training's scale.
        seen_as: how images reach the network.
        method: with the weights that the stage begins with.
        fabric: of the training.
        stage: 0, 1, ...

    Returns:
        None where the method learns from labels or masks alone.
    """
    if config.teachers:
        return targets(config, samples.table, samples, seen_as, fabric)
    method, device = method.to(fabric.device).eval(), fabric.device
    bar = Bar(desc="targets", unit="image", delay=1, disable=not samples.progress, leave=False)

    def image(index: int) -> Tensor:
        bar.update()
        return normalise(samples.whole(index)[0], seen_as).to(device)

    own: list[Tensor] = []
    with torch.no_grad(), bar:
        if not stage:
            own = method.first_targets(image, samples.labels) or []
        for index in range(len(samples) if stage else 0):
            target = method.targets(image(index)[None])
            if target is None:
                return None
            own.append(target[0])
    return [(target * 255).round().to(torch.uint8).cpu() for target in own] or None
