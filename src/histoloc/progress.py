"""How far a long loop is: a bar on a terminal, a line every half minute in a log."""

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 30.0


class Bar(tqdm):
    """tqdm, with its arguments; where nobody looks at a terminal it writes lines, and seldom."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.disable and not self.fp.isatty():
            self.mininterval, self.miniters, self.dynamic_miniters = LOG_SECONDS, 1, False

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Redraw a line of a terminal; write a new one elsewhere."""
        if file.isatty():
            return tqdm.status_printer(file)
        return lambda text: print(text, file=file, flush=True) if text.strip() else None
