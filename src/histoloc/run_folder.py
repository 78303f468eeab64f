"""Who may write into a run folder."""

from pathlib import Path
from typing import Any

from histoloc.config import RunConfig, plain, read_run
from histoloc.errors import InputError

# What may differ when a run is resumed: none of it changes the result.
_RESUMABLE = {"epochs", "workers", "cache_gb"}


def check_claim(out: Path, config: RunConfig, resume: bool) -> None:
    """Make the run folder, and make sure that a run that is there may be continued.

    Raises:
        InputError: no folder can be made there; it holds a run and `resume` is not set, or a run of other settings.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made a folder ({error.strerror}); choose another --out") from error
    earlier = out / "run.yaml"
    if not earlier.exists():
        return
    if not resume:
        raise InputError(f"{out}: holds a run already; add --resume to go on with it, or choose another --out")
    if not (out / "last.ckpt").exists() and not (out / "model").exists():
        return
    before, now = _flat(plain(read_run(earlier))), _flat(plain(config))
    differing = [k for k in now if before.get(k) != now[k] and k.rsplit(".", 1)[-1] not in _RESUMABLE]
    if differing:
        said = ", ".join(f"{k} was {before.get(k)} and is {now[k]}" for k in differing)
        raise InputError(f"{out}: cannot be resumed with other settings ({said}); restore them or choose another --out")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
