"""The optimizer and its schedule, a function of the epoch."""

import torch

from histoloc.config import TrainingConfig
from histoloc.methods import Method


def make_optimizer(method: Method, training: TrainingConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; the heads may learn at another rate than the backbone."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0 if ".model." in name else training.head_lr
        groups.setdefault(factor, []).append(parameter)
    return torch.optim.SGD(
        [{"params": p, "factor": factor} for factor, p in groups.items()],
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    )


def learning_rate(training: TrainingConfig, epoch: int) -> float:
    """The backbone's learning rate in epoch 0, 1, ..."""
    return max(training.lr * training.lr_factor ** (epoch // training.lr_every), training.lr_floor)


def set_learning_rate(optimizer: torch.optim.Optimizer, training: TrainingConfig, epoch: int) -> None:
    """Set each group's learning rate for the epoch."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training, epoch) * group["factor"]
