"""What is kept ready, within bounds: open files, and tiles that were made."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Closes(Protocol):
    """Something that holds a file."""

    def close(self) -> None:
        """Release it."""
        ...


T = TypeVar("T")
F = TypeVar("F", bound=Closes)


@dataclass
class _Held(Generic[F]):
    value: F
    users: int = 0
    dropped: bool = False


class OpenFiles(Generic[F]):
    """The files used last, open; one that has to go is closed when its last reader has finished.

    Args:
        limit: how many are kept open.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, _Held[F]] = OrderedDict()

    @contextmanager
    def lend(self, key: Hashable, open_file: Callable[[], F]) -> Iterator[F]:
        """The file of this key for the duration of a block."""
        held = self._take(key)
        if held is None:
            held = self._put(key, open_file())  # slow, so outside the lock
        try:
            yield held.value
        finally:
            with self._lock:
                held.users -= 1
                idle = held.dropped and held.users == 0
            if idle:
                held.value.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            held = list(self._held.values())
            self._held.clear()
            for one in held:
                one.dropped = True
            idle = [one for one in held if one.users == 0]
        for one in idle:
            one.value.close()

    def _take(self, key: Hashable) -> _Held[F] | None:
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                held.users += 1
                self._held.move_to_end(key)
            return held

    def _put(self, key: Hashable, value: F) -> _Held[F]:
        with self._lock:
            held = self._held.get(key)
            surplus = [] if held is None else [value]  # another thread was faster
            if held is None:
                held = self._held[key] = _Held(value)
            held.users += 1
            self._held.move_to_end(key)
            while len(self._held) > self._limit:
                _, oldest = self._held.popitem(last=False)
                oldest.dropped = True
                if oldest.users == 0:
                    surplus.append(oldest.value)
        for one in surplus:
            one.close()
        return held


class Shelf(Generic[T]):
    """The results used last, up to a size.

    Args:
        limit: in bytes.
        size: bytes of a result.
    """

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self._limit, self._size = limit, size
        self._used = 0
        self._lock = threading.Lock()
        self._results: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of this key, made where it is not there; one larger than the limit is not kept."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        made = make()
        with self._lock:
            if key not in self._results and self._size(made) <= self._limit:
                self._results[key] = made
                self._used += self._size(made)
            while self._used > self._limit:
                self._used -= self._size(self._results.popitem(last=False)[1])
        return made
