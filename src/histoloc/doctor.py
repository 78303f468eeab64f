"""What this machine can do."""

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from shutil import disk_usage, which


def examine() -> dict[str, str]:
    """Findings by name, in the order in which they should be read."""
    import torch

    import histoloc

    found = {
        "histoloc": histoloc.__version__,
        "python": sys.version.split()[0],
        **{name: _version(name) for name in ("torch", "torchvision", "timm", "lightning-fabric")},
        "cores": f"{os.cpu_count()} ({torch.get_num_threads()} used by torch)",
        "memory": _memory(),
        "free disk": f"{disk_usage(os.curdir).free / 2**30:.0f} GiB here",
        "GPU": _gpu(),
        "bf16": _bf16(),
        "weights": _weights(),
        "torch.compile": "yes" if torch.cuda.is_available() or which("g++") else "no (needs a C++ compiler)",
        "OpenSlide": _openslide(),
    }
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing: install histoloc again"


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(names)
    return "mps" if torch.backends.mps.is_available() else "none: training runs on the CPU"


def _bf16() -> str:
    import torch

    if torch.cuda.is_available():
        return "used by --precision auto" if torch.cuda.is_bf16_supported() else "no: --precision auto takes float32"
    native = hasattr(torch.cpu, "_is_amx_tile_supported") and torch.cpu._is_amx_tile_supported()
    hint = "fast here (AMX): --precision bf16-mixed pays for ResNets, not for the default backbone"
    return hint if native else "not fast here: keep float32"


def _weights() -> str:
    from histoloc.errors import InputError
    from histoloc.nn.backbone import EMBEDDED_BACKBONE, embedded_weights

    try:
        return f"{EMBEDDED_BACKBONE} (ImageNet): {embedded_weights(EMBEDDED_BACKBONE).name}"
    except InputError as error:
        return str(error)


def _openslide() -> str:
    if find_spec("openslide") is None:
        return "not installed (needed for slides only)"
    try:
        openslide = import_module("openslide")
    except OSError as error:
        return f"installed, but its native library does not load ({error})"
    return str(openslide.__library_version__)
