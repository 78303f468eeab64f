"""The web application: addresses name entries of the catalog, and never a path.

Everything that comes with an address is looked up in a table made beforehand (static files, keys, layers) or is a
number of at most six digits, so that no part of an address reaches the file system.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TypeVar

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from histoloc.errors import InputError
from histoloc.viewer.catalog import Catalog
from histoloc.viewer.entries import Entry
from histoloc.viewer.layers import LAYERS, Layers, NoTile

log = logging.getLogger(__name__)

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# The hash is that of an empty style element: the page has one in place of the one that OpenSeadragon would add.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
        "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
LONGEST_ADDRESS = 2048
READERS = 8  # threads that read and encode tiles; each may hold some 30 MB
_LOCAL_NAMES = ("localhost", "ip6-localhost")
_TILE = re.compile(r"([0-9]{1,6})_([0-9]{1,6})", re.ASCII)
_LEVEL = re.compile(r"[0-9]{1,2}", re.ASCII)

T = TypeVar("T")


def make_app(catalog: Catalog, host: str = "127.0.0.1") -> Starlette:
    """The application over a catalog.

    Args:
        catalog: what may be looked at.
        host: name under which the server is reached besides localhost and addresses written in numbers.
    """
    viewer = _Viewer(catalog)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        viewer.layers.close()

    routes = [
        Route("/", viewer.page),
        Route("/static/{name:path}", viewer.static),
        Route("/api/list", viewer.list),
        Route("/api/outlines/{key}", viewer.outlines),
        Route("/api/truth/{key}", viewer.truth),
        Route("/tiles/{key}/{layer}/{level}/{place}", viewer.tile),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _refusal},
        middleware=[Middleware(Guard, hosts={host.lower(), *_LOCAL_NAMES, socket.gethostname().lower()})],
    )


class _Viewer:
    """The answers to each kind of address."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.layers = Layers()
        self._static = static_files()
        self._readers = anyio.CapacityLimiter(READERS)

    async def page(self, _: Request) -> Response:
        return self._file("index.html")

    async def static(self, request: Request) -> Response:
        return self._file(request.path_params["name"])

    async def list(self, _: Request) -> Response:
        def scanned() -> object:
            self.catalog.scan()
            return self.catalog.to_json()

        return JSONResponse(await self._threaded(scanned), headers={"cache-control": "no-store"})

    async def outlines(self, request: Request) -> Response:
        entry = self._entry(request)
        return _kept(await self._threaded(lambda: self.layers.outlines(entry)), "application/geo+json")

    async def truth(self, request: Request) -> Response:
        entry = self._entry(request)
        return _kept(await self._threaded(lambda: self.layers.truth(entry)), "application/geo+json")

    async def tile(self, request: Request) -> Response:
        entry = self._entry(request)
        named = LAYERS.get(request.path_params["layer"])
        level = _LEVEL.fullmatch(request.path_params["level"])
        place = _TILE.fullmatch(request.path_params["place"])
        if named is None or level is None or place is None:
            raise HTTPException(404, "there is no such tile")
        layer, media_type = named
        where = int(level[0]), int(place[1]), int(place[2])

        def read() -> bytes:
            try:
                return self.layers.tile(entry, layer, *where)
            except InputError as error:
                if layer == "picture":
                    self.catalog.note_problem(entry.key, str(error))
                raise

        return _kept(await self._threaded(read), media_type)

    def _entry(self, request: Request) -> Entry:
        entry = self.catalog.find(request.path_params["key"])
        if entry is None:
            raise HTTPException(404, "there is no such slide or image; reload the page")
        return entry

    def _file(self, name: str) -> Response:
        found = self._static.get(name)
        if found is None:
            raise HTTPException(404, "there is no such file")
        content, media_type = found
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    async def _threaded(self, read: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(read, limiter=self._readers)
        except NoTile as error:
            raise HTTPException(404, "there is no such tile or layer") from error
        except InputError as error:
            raise HTTPException(410, str(error)) from error


class Guard:
    """Refuses foreign host names (a page elsewhere could rebind its name to this machine) and long addresses.

    It adds the headers that keep a browser from running or embedding anything else, and answers 500 in one line
    where something unforeseen happens.
    """

    def __init__(self, app: ASGIApp, hosts: set[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, with_headers)
            return
        try:
            await self._app(scope, receive, with_headers)
        except Exception as error:  # the last resort: one line here, and no details to the browser
            log.error("%s: %s: %s", type(error).__name__, ascii(scope["path"]), " ".join(str(error).split()))
            if not started:
                await PlainTextResponse("something unforeseen happened", 500)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        address = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
        if len(address) + len(scope.get("query_string", b"")) > LONGEST_ADDRESS:
            return PlainTextResponse("the address is too long", 414)
        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(named) != 1 or not is_own_name(named[0], self._hosts):
            return PlainTextResponse("the viewer does not answer under this host name; see --host", 400)
        return None


def is_own_name(host: str, names: set[str]) -> bool:
    """Whether a Host header names this server: one of the names, or an address in numbers, which cannot be rebound."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?", host, re.ASCII)
    if match is None:
        return False
    name = match[1].strip("[]").lower().rstrip(".")
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def static_files() -> dict[str, tuple[bytes, str]]:
    """Content and media type of the page's files, by their name below `static/`."""
    found: dict[str, tuple[bytes, str]] = {}

    def add(folder: Traversable, prefix: str) -> None:
        for file in folder.iterdir():
            suffix = "." + file.name.rpartition(".")[2]
            if file.is_dir():
                add(file, f"{prefix}{file.name}/")
            elif suffix in MEDIA_TYPES:
                found[prefix + file.name] = (file.read_bytes(), MEDIA_TYPES[suffix])

    add(files("histoloc.viewer") / "static", "")
    return found


def _kept(content: bytes, media_type: str) -> Response:
    """A browser may keep it: the key in its address changes with the file."""
    return Response(content, media_type=media_type, headers={"cache-control": "private, max-age=86400, immutable"})


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(str(error.detail), error.status_code, headers=error.headers)
