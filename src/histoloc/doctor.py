"""What this machine can do."""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from shutil import disk_usage, which

import psutil
import torch

from histoloc.errors import InputError
from histoloc.nn.backbone import EMBEDDED_BACKBONE, embedded_weights


def doctor() -> None:
    """Say what this machine can do: torch, devices, bf16, OpenSlide, weights found."""
    for name, fact in machine().items():
        print(f"{name:18} {fact}")


def machine() -> dict[str, str]:
    """The same by name."""
    return {
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("histoloc", "torch", "torchvision", "timm", "lightning-fabric")},
        "cores": f"{os.cpu_count()} ({torch.get_num_threads()} used by torch)",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "free disk": f"{disk_usage(os.curdir).free / 2**30:.0f} GiB here",
        "GPU": _gpu(),
        "bf16": _bf16(),
        "weights": _weights(),
        "torch.compile": "yes" if torch.cuda.is_available() or which("g++") else "no (needs a C++ compiler)",
        "OpenSlide": _openslide(),
    }


def _gpu() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return "mps" if torch.backends.mps.is_available() else "none: training runs on the CPU"


def _bf16() -> str:
    if torch.cuda.is_available():
        return "used by --precision auto" if torch.cuda.is_bf16_supported() else "no: --precision auto takes float32"
    native = hasattr(torch.cpu, "_is_amx_tile_supported") and torch.cpu._is_amx_tile_supported()
    hint = "fast here (AMX): --precision bf16-mixed pays for ResNets, not for the default backbone"
    return hint if native else "not fast here: keep float32"


def _weights() -> str:
    try:
        return f"{EMBEDDED_BACKBONE} (ImageNet): {embedded_weights(EMBEDDED_BACKBONE).name}"
    except InputError as error:
        return str(error)


def _openslide() -> str:
    if find_spec("openslide") is None:
        return "not installed (needed for slides only)"
    try:
        return str(import_module("openslide").__library_version__)
    except OSError as error:
        return f"installed, but its native library does not load ({error})"
