"""What this machine can do."""

import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from shutil import which

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
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = bool(gpus) and torch.cuda.is_bf16_supported()
    return {
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("histoloc", "torch", "torchvision", "timm", "lightning-fabric")},
        "processor": _processor(),
        "cores": f"{os.cpu_count()} ({torch.get_num_threads()} used by torch)",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "free disk": f"{psutil.disk_usage(os.curdir).free / 2**30:.0f} GiB here",
        "GPU": ", ".join(gpus) or ("mps" if torch.backends.mps.is_available() else "none: training runs on the CPU"),
        "bf16": "used by --precision auto" if bf16 else "not fast here: --precision auto takes float32",
        "torch.compile": "yes" if gpus or which("g++") else "no (needs a C++ compiler)",
        "weights": _weights(),
        "OpenSlide": _openslide(),
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")  # elsewhere Python knows it
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _weights() -> str:
    try:
        return f"{EMBEDDED_BACKBONE} (ImageNet): {embedded_weights(EMBEDDED_BACKBONE).name}"
    except InputError as error:
        return str(error)


def _openslide() -> str:
    try:
        return str(import_module("openslide").__library_version__)
    except (ImportError, OSError) as error:
        return f"does not load ({error}); it is needed for slides only"
