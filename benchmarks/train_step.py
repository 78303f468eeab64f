"""Seconds per max-min training step and per evaluated image, against a plain baseline in the same run.

    python benchmarks/train_step.py [--size 416] [--batch 4] [--backbone tf_efficientnet_lite0] [--repeats 5]

Baseline: the same network in float32, channels first, X⁺ and X⁻ classified in separate passes. Each variant changes
one thing. Ratios are baseline time / variant time (larger is faster), from the median of the repeats, interleaved so
that a busy machine hurts all alike. "of peak" is the share of this machine's measured float32 matmul rate.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from histoloc.data.transforms import Augment, InputConfig, load_tensor
from histoloc.methods import METHODS, Setting
from histoloc.methods.maxmin import MaxMinOptions
from histoloc.nn.backbone import BackboneConfig
from histoloc.types import Batch


def matmul_peak(seconds: float = 1.0) -> float:
    """Measured float32 matmul rate in FLOP/s."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        torch.mm(a, b)
        count += 1
    return count * 2 * 2048**3 / (time.perf_counter() - start)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Variant:
    """One way to run the same training step."""

    def __init__(self, arguments: argparse.Namespace, *, joint: bool, last: bool, bf16: bool) -> None:
        torch.manual_seed(0)
        setting = Setting(("benign", "malignant"), BackboneConfig(arguments.backbone, weights="none"))
        self.format = torch.channels_last if last else torch.contiguous_format
        self.method = METHODS["maxmin"](setting, MaxMinOptions(joint=joint)).train().to(memory_format=self.format)
        self.optimizer = torch.optim.SGD(self.method.parameters(), 1e-3, momentum=0.9, nesterov=True)
        shape = (arguments.batch, 3, arguments.size, arguments.size)
        image = torch.randn(shape).contiguous(memory_format=self.format)
        self.batch = Batch(image, torch.arange(arguments.batch) % 2, None, ())
        self.bf16 = bf16

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            out = self.method(self.batch.image)
        torch.stack(list(self.method.loss(out, self.batch, 0).values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def evaluate(self) -> None:
        self.method.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            self.method.evidence(self.batch.image[:1])
        self.method.train()

    def flops(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()


def loader_cost(size: int, batch: int) -> tuple[float, float]:
    """Seconds per batch to resize from memory, and to augment what is cached."""
    image = np.random.default_rng(0).integers(0, 255, (522, 775, 3), dtype=np.uint8)
    config = InputConfig(small_side=size + 16, crop=size)
    augment = Augment(config)
    pixels = load_tensor(image, config)
    resize = statistics.median(timed(lambda: load_tensor(image, config)) for _ in range(5))
    change = statistics.median(timed(lambda: augment(pixels, None, 0)) for _ in range(5))
    return batch * resize, batch * change


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    variants = {
        "baseline: float32, channels first, separate passes": {"joint": False, "last": False, "bf16": False},
        "  + one joint pass over X⁺ and X⁻": {"joint": True, "last": False, "bf16": False},
        "  + channels last (histoloc's default)": {"joint": True, "last": True, "bf16": False},
        "  + bf16 autocast": {"joint": True, "last": True, "bf16": True},
    }
    built = {name: Variant(arguments, **options) for name, options in variants.items()}
    peak, flops = matmul_peak(), next(iter(built.values())).flops()
    steps: dict[str, list[float]] = {name: [] for name in built}
    images: dict[str, list[float]] = {name: [] for name in built}
    for repeat in range(arguments.repeats + 1):  # the first round warms up
        for name, variant in built.items():
            step, image = timed(variant.step), timed(variant.evaluate)
            if repeat:
                steps[name].append(step)
                images[name].append(image)
    print(
        f"{arguments.backbone}, batch {arguments.batch} of {arguments.size}², {torch.get_num_threads()} threads, ",
        end="",
    )
    print(f"float32 matmul peak {peak / 1e9:.0f} GFLOP/s, {flops / 1e9:.1f} GFLOP per step")
    base_step, base_image = (statistics.median(next(iter(times.values()))) for times in (steps, images))
    for name in built:
        step, image = statistics.median(steps[name]), statistics.median(images[name])
        print(
            f"{name:52} step {step:6.3f} s ({base_step / step:4.2f}x, {flops / step / peak:5.1%} of peak)"
            f"   image {image:6.3f} s ({base_image / image:4.2f}x)"
        )
    resize, change = loader_cost(arguments.size, arguments.batch)
    step = statistics.median(steps["  + channels last (histoloc's default)"])
    print(f"loader per batch: resize {resize:.3f} s (once per image, then cached),", end=" ")
    print(f"augment {change:.3f} s = {change / step:.1%} of a step")


if __name__ == "__main__":
    main()
