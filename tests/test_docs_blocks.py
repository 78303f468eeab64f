"""Blocks of code in README and docs: shell blocks parse as real commands; those marked `<!-- run -->` are run."""

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from histoloc.cli.main import app, main
from histoloc.methods import METHODS
from methods.small import build

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(<!-- run -->\n)?```(\w*)\n(.*?)```", re.S)


class Block(NamedTuple):
    page: Path
    run: bool
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """Arguments of each histoloc command in a shell block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        parts = [part for line in lines for part in _split(shlex.split(line, comments=True))]
        return [part[1:] for part in parts if part[:1] == ["histoloc"]]


def _split(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", ";"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


BLOCKS = [Block(page, bool(run), lang, text) for page in PAGES for run, lang, text in FENCE.findall(page.read_text())]
COMMANDS = [(b.page.name, command) for b in BLOCKS if b.language == "sh" for command in b.commands]
EXECUTED = [block for block in BLOCKS if block.language == "python" or block.run]


def test_every_block_says_its_language():
    assert {block.language for block in BLOCKS} <= {"sh", "python", "text", "yaml"}
    assert len(COMMANDS) > 30


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{p}:{' '.join(c)[:60]}" for p, c in COMMANDS])
def test_a_shell_block_has_real_commands(page, command):
    if "--recipe" in command and command[command.index("--recipe") + 1].startswith("runs/"):
        pytest.skip("the recipe is a file that only a run leaves behind")
    app.parse_args(command, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", [c for _, c in COMMANDS if c[:2] == ["train", "maxmin"]], ids=" ".join)
def test_options_of_a_training_go_together(command):
    if "--help" in command or "--recipe runs/" in " ".join(command):
        pytest.skip("nothing is trained, or the recipe is a file that only a run leaves behind")
    _, bound, _ = app.parse_args(command, exit_on_error=False, print_error=False)
    flags = bound.arguments["flags"]
    classes = (flags.empty_class or "benign", "malignant")
    options = vars(bound.arguments.get("options", METHODS["maxmin"].Options()))
    build("maxmin", classes=classes, empty_class=flags.empty_class, **options)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_table, tiny) -> Path:
    """A folder as the docs assume it: a table, a run, an image."""
    import histoloc

    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(tiny_table.parent, folder, dirs_exist_ok=True)
    shutil.copy(tiny_table, folder / "mine.csv")
    shutil.copy(sorted(folder.rglob("*.png"))[0], folder / "image.png")
    histoloc.train(tiny("gap", data=folder / "mine.csv", epochs=1), folder / "runs" / "mine", progress=False)
    return folder


@pytest.mark.parametrize("block", EXECUTED, ids=[f"{b.page.name}:{b.text.splitlines()[0][:40]}" for b in EXECUTED])
def test_a_block_runs(block, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    if block.language == "python":
        import histoloc

        before = dict(histoloc.METHODS)
        try:
            exec(compile(block.text, str(block.page), "exec"), {"__name__": "docs"})
        finally:
            histoloc.METHODS.clear()
            histoloc.METHODS.update(before)
    else:
        for command in block.commands:
            main(command)
