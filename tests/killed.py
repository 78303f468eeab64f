"""A process that is killed at a certain moment, however fast the machine is."""

import os
from pathlib import Path

HOOK = """
import os, signal, sys
seen = []
def kill(event, arguments):
    if event == "os.rename" and {text!r} in str(arguments[1]):
        seen.append(arguments[1])
        if len(seen) == {number}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""


def killed_at(folder: Path, text: str, number: int) -> dict[str, str]:
    """Variables of a Python process that gets SIGKILL when a file with `text` in its path would be complete.

    Args:
        folder: for the module that does it.
        text: as `/parts/`.
        number: of such files, from 1: the one that never appears.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(HOOK.format(text=text, number=number))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}
