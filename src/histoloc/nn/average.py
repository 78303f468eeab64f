"""A running average of a module's weights: a better predictor than the weights of any one step."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_PREFIX = "average.module."  # of its weights in a method that keeps it as `average`
SLOWEST = 0.02  # least share of a batch in the statistics of batch normalisation


class Average(nn.Module):
    """A copy of a module whose weights follow it slowly; it is always in eval mode and never trained.

    After each step a <- d a + (1 - d) w, from a = w after the first one (Tarvainen and Valpola, NeurIPS 2017, Eq. 2).

    Args:
        module: what is averaged.
        decay: d, below 1.
    """

    updates: Tensor
    followed: Tensor

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = copy.deepcopy(module).requires_grad_(False)
        for name in ("updates", "followed"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.train()

    def train(self, mode: bool = True) -> "Average":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, module: nn.Module, *, statistics: bool = True) -> None:
        """Move towards the weights of `module`, and where asked for towards its statistics of batch normalisation."""
        share = 1 - self.decay if self.updates else 1.0
        own, other = self.module.state_dict(), module.state_dict()
        learned = {name for name, _ in self.module.named_parameters()}
        for name, value in own.items():
            if name not in learned and self.updates and not statistics:
                continue
            if value.is_floating_point() and share < 1:
                value.lerp_(other[name], share)
            else:
                value.copy_(other[name])
        self.updates += 1

    @torch.no_grad()
    def follow(self, look: Callable[[], Any]) -> None:
        """Let the statistics of batch normalisation follow the images that the copy sees while `look` runs.

        Of the n-th call they take a share of 1 / (n + 1), or 0.02 where that is less.
        """
        norms = [m for m in self.module.modules() if isinstance(m, _BatchNorm)]
        for norm in norms:
            norm.momentum = max(SLOWEST, 1 / (int(self.followed) + 2))
            norm.training = True
        look()
        self.train()
        self.followed += 1


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A method's weights, each replaced by its average where the method keeps one."""
    own = {name: value for name, value in state.items() if not name.startswith("average.")}
    return {name: state.get(f"{_PREFIX}{name}", value) for name, value in own.items()}
