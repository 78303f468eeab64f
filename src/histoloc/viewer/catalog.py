"""The slides and images of all folders given, and nothing else: an address names an entry of this list."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from histoloc.errors import InputError
from histoloc.viewer.entries import Entry
from histoloc.viewer.evaluations import evaluation_state, evaluation_title, is_evaluation, read_evaluations
from histoloc.viewer.predictions import is_predictions, prediction_title, read_predictions


@dataclass(frozen=True)
class Model:
    """A folder given, as one model beside others: its name is unique among them."""

    name: str
    folder: Path
    slides: bool


class Catalog:
    """Entries by key, rescanned on demand so that a running prediction shows its new slides.

    Args:
        folders: that `histoloc slides predict` or `histoloc evaluate` wrote; several are several models.

    Raises:
        InputError: no such folder, one given twice, or nothing to look at in one of them.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders:
            raise InputError("nothing to view; give a folder that `histoloc slides predict` or `evaluate` wrote")
        resolved = [_checked(folder) for folder in folders]
        if len(set(resolved)) < len(resolved):
            raise InputError(f"{folders[0]}: a folder is given twice; give each once")
        self.models = _named([Model(folder.name, folder, is_predictions(folder)) for folder in resolved])
        self._lock = threading.Lock()
        self._evaluated: dict[int, tuple[tuple[int, ...], list[Entry]]] = {}
        self._problems: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        for number, model in enumerate(self.models):
            self._scan(number, model)  # what is broken from the start is told at once
        self.scan()

    def scan(self) -> None:
        """Read the folders again."""
        with self._lock:
            entries: dict[str, Entry] = {}
            for number, model in enumerate(self.models):
                try:
                    found = self._scan(number, model)
                except (InputError, OSError):  # being written: what was there a moment ago stays
                    found = [entry for entry in self._entries.values() if entry.model == number]
                entries |= {entry.key: entry for entry in found}
            self._problems = {key: text for key, text in self._problems.items() if key in entries}
            self._entries = entries

    def find(self, key: str) -> Entry | None:
        """The entry of this key."""
        return self._entries.get(key)

    def note_problem(self, key: str, problem: str) -> None:
        """Remember, for the list, what went wrong with a file."""
        with self._lock:
            if key in self._entries:
                self._problems[key] = problem

    def to_json(self) -> dict[str, Any]:
        """Models, and the slides sorted by score (the highest of any model first), each with its entries."""
        with self._lock:
            entries = [
                replace(entry, problem=entry.problem or self._problems.get(key, ""))
                for key, entry in self._entries.items()
            ]
        items: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            items.setdefault((entry.kind, entry.name), []).append(entry)
        ordered = sorted(items.items(), key=lambda item: (-_score(item[1]), item[0]))
        return {
            "models": [{"name": model.name, "title": self._title(model)} for model in self.models],
            "items": [
                {"name": name, "kind": kind, "score": _shown(found), "entries": [entry.to_json() for entry in found]}
                for (kind, name), found in ordered
            ],
        }

    def _scan(self, number: int, model: Model) -> list[Entry]:
        if model.slides:
            return read_predictions(model.folder, number)
        state = evaluation_state(model.folder)
        if number not in self._evaluated or self._evaluated[number][0] != state:
            self._evaluated[number] = (state, read_evaluations(model.folder, number))
        return self._evaluated[number][1]

    def _title(self, model: Model) -> str:
        read: Callable[[Path], str] = prediction_title if model.slides else evaluation_title
        try:
            return read(model.folder)
        except InputError:
            return ""


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that `histoloc slides predict` or `evaluate` wrote")
    if not is_predictions(folder) and not is_evaluation(folder):
        raise InputError(
            f"{folder}: holds neither slides of `histoloc slides predict` (NAME/slide.json) nor results of "
            "`histoloc evaluate` (metrics.json); give such a folder"
        )
    return folder.resolve()


def _named(models: list[Model]) -> tuple[Model, ...]:
    """Give folders of one name their parent's name too, then a number."""

    def repeated(name: str, among: list[Model]) -> bool:
        return [model.name for model in among].count(name) > 1

    longer = [
        replace(model, name=f"{model.folder.parent.name}/{model.name}") if repeated(model.name, models) else model
        for model in models
    ]
    return tuple(
        replace(model, name=f"{model.name} ({number})") if repeated(model.name, longer) else model
        for number, model in enumerate(longer, 1)
    )


def _score(entries: Sequence[Entry]) -> float:
    return max((entry.score for entry in entries if entry.score is not None), default=-1.0)


def _shown(entries: Sequence[Entry]) -> float | None:
    score = _score(entries)
    return score if score >= 0 else None
