"""How far a long loop is: a bar on a terminal, a line every half minute in a log; and what memory it took."""

import sys
import time
from collections.abc import Callable
from typing import Any, cast

import psutil
from tqdm import tqdm

LOG_SECONDS = 30.0


class Bar(tqdm):
    """tqdm, with its arguments; where nobody looks at a terminal it writes a line seldom, and one at the end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._written = time.monotonic()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar; in a log only where the last line is old."""
        if self.fp.isatty():
            super().display(msg, pos)
        elif msg is None and self.n > self.initial and time.monotonic() - self._written >= LOG_SECONDS:
            self._written = time.monotonic()
            print(self, file=self.fp, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """Take the bar off a terminal."""
        if self.fp.isatty():
            super().clear(nolock)

    def close(self) -> None:
        """End the bar; in a log with a line, where it would stay on a terminal."""
        if self.disable or self.fp.isatty():
            return super().close()
        self.disable, own = True, cast(Any, self)
        own._decr_instances(self)
        if self.leave and self.n > self.initial:
            print(self, file=self.fp, flush=True)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """What redraws a line of a terminal; nothing elsewhere."""
        return tqdm.status_printer(file) if file.isatty() else lambda text: None


def peak_memory() -> int:
    """Greatest resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
