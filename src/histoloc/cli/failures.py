"""How a command ends that could not do all that it was asked for."""

import sys
from collections.abc import Mapping


def list_failed(failed: Mapping[str, str]) -> None:
    """Name what failed, a line each; where anything did, the exit code is 1."""
    for name, reason in failed.items():
        print(f"failed: {name}: {reason.removeprefix(f'{name}: ')}", file=sys.stderr)
    if failed:
        raise SystemExit(1)
