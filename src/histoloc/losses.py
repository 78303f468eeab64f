"""Loss terms as pure functions.

Logarithms are natural, probabilities are never formed before their logarithm is taken, and every term is computed
in float32 or better whatever the network's precision. Losses of single images are returned as (B,) so that the caller
decides over which images to average.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from histoloc.maps import at_least_float32
from histoloc.types import Batch


def classification(logits: Tensor, batch: Batch, *, each: bool = False) -> Tensor:
    """Cross-entropy of the images' classes; of an image with several, their mean.

    Args:
        logits: (B, K).
        batch: its label, or its labels where an image may have several.
        each: give every image's value instead of their mean.

    Returns:
        A scalar, or (B,), >= 0 nats.
    """
    if batch.labels is None:
        return F.cross_entropy(logits, batch.label, reduction="none" if each else "mean")
    share = batch.labels / batch.labels.sum(dim=1, keepdim=True)
    values = -(share * logits.log_softmax(dim=1)).sum(dim=1)
    return values if each else values.mean()


def negative_entropy(logits: Tensor) -> Tensor:
    """Explicit entropy maximisation (EEM): R(p) = -H(p), Eq. 1 of Belharbi et al. (2022).

    Args:
        logits: (B, K) class scores of the background.

    Returns:
        (B,) in [-log K, 0] nats; smallest where the classes are equally likely.
    """
    log_p = F.log_softmax(at_least_float32(logits), dim=1)
    return (log_p.exp() * log_p).sum(dim=1)


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    """Surrogate for explicit entropy maximisation (SEM): R(p) = H(q, p), q uniform, Eq. 1 of Belharbi et al. (2022).

    Args:
        logits: (B, K) class scores of the background.

    Returns:
        (B,) at least log K nats, which is reached where the classes are equally likely. Unlike `negative_entropy`,
        it is convex in the logits and its gradient does not vanish where the classifier is certain.
    """
    return -F.log_softmax(at_least_float32(logits), dim=1).mean(dim=1)


def log_barrier(z: Tensor, t: Tensor | float) -> Tensor:
    """Log-barrier extension psi_t for a constraint z <= 0 (Kervadec et al., 2019, "Constrained deep networks").

    psi_t(z) = -(1/t) log(-z) where z <= -1/t², and its tangent t z - (1/t) log(1/t²) + 1/t beyond, so that value and
    gradient are finite and continuous everywhere, also where the constraint is violated.

    Args:
        z: any shape.
        t: accuracy of the approximation, > 0; the larger, the closer to a hard constraint.

    Returns:
        The shape of `z`; float32 for lower precisions, else the input's type.
    """
    z = at_least_float32(z)
    t = torch.as_tensor(t, dtype=z.dtype, device=z.device)
    edge = -1.0 / t**2
    inside = z <= edge
    barrier = -torch.log(-torch.where(inside, z, edge)) / t
    tangent = t * z + 2.0 * torch.log(t) / t + 1.0 / t
    return torch.where(inside, barrier, tangent)


def quadratic_penalty(z: Tensor) -> Tensor:
    """Penalty max(0, z)² for a constraint z <= 0 (Kervadec et al., MedIA 2019, Eq. 3).

    A size s with a <= s <= b has the constraints a - s <= 0 and s - b <= 0, and their penalties (s - a)² below a and
    (s - b)² above b.

    Args:
        z: any shape.

    Returns:
        The shape of `z`, >= 0; float32 for lower precisions, else the input's type. Zero with zero gradient where the
        constraint holds.
    """
    return F.relu(at_least_float32(z)).square()


def absolute_size(mask: Tensor, t: Tensor | float) -> Tensor:
    """Absolute size constraints (ASC): -(1/t) [log s⁺ + log s⁻], Eq. 1 of Belharbi et al. (2022).

    The sizes s± are shares of the image instead of pixel counts, which shifts the value by a constant and makes it
    independent of the image's size. The barrier's extension takes over below a share of 1/t².

    Args:
        mask: (B, 1, H, W) soft mask M⁺ in [0, 1]; M⁻ = 1 - M⁺.
        t: the barrier's parameter, > 0.

    Returns:
        (B,), smallest where both regions cover half of the image: (2/t) log 2 for t >= sqrt 2.
    """
    share = at_least_float32(mask).mean(dim=(1, 2, 3))
    return log_barrier(-share, t) + log_barrier(share - 1.0, t)


def foreground_size(mask: Tensor, t: Tensor | float) -> Tensor:
    """The half of the size constraints that the authors' code for Camelyon16 keeps: -(1/t) log s⁺.

    Args:
        mask: (B, 1, H, W) soft mask M⁺ in [0, 1].
        t: the barrier's parameter, > 0.

    Returns:
        (B,) >= 0, smallest where the ROI covers the image; s⁺ is its share of the image, as in `absolute_size`.
    """
    return log_barrier(-at_least_float32(mask).mean(dim=(1, 2, 3)), t)


def empty_map(logits: Tensor) -> Tensor:
    """Binary cross-entropy that pushes a map to zero everywhere: images of a class without ROI.

    Args:
        logits: (B, 1, h, w) scores of the map before its sigmoid.

    Returns:
        (B,) >= 0 nats.
    """
    return F.softplus(at_least_float32(logits)).mean(dim=(1, 2, 3))


def soft_dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss 1 - (2 Σ p m + 1) / (Σ p + Σ m + 1), sums over the pixels of one image.

    The added ones, worth a single pixel, define the value of an empty mask: 0 where nothing is predicted, towards 1
    otherwise. They leave no gradient where much is predicted on an empty mask; combine it with a cross-entropy.

    Args:
        probability: (B, 1, H, W) in [0, 1].
        mask: (B, 1, H, W) in [0, 1], the truth.

    Returns:
        (B,) in [0, 1).
    """
    p, m = at_least_float32(probability).flatten(1), at_least_float32(mask).flatten(1)
    return 1 - (2 * (p * m).sum(dim=1) + 1) / (p.sum(dim=1) + m.sum(dim=1) + 1)


def barrier_at(options: Any, epoch: int) -> float:
    """The log-barrier's t in epoch 0, 1, ...: `barrier_start` times `barrier_factor` per epoch, up to `barrier_cap`."""
    grown = options.barrier_start * options.barrier_factor**epoch
    return min(grown, max(options.barrier_cap, options.barrier_start))
