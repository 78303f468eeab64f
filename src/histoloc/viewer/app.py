"""The web application: addresses name entries of the catalog, and never a path.

Everything that comes with an address is looked up in a table made beforehand (keys, layers) or is a number of at most
six digits; only the page's own files are found by their names, by Starlette, which stays in their folder.
"""

from __future__ import annotations

import ipaddress
import logging
import mimetypes
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from histoloc.errors import InputError
from histoloc.viewer.catalog import Catalog, Entry
from histoloc.viewer.tiles import LAYERS, outlines, render_tile

log = logging.getLogger(__name__)

# The hash is that of an empty style element: the page has one in place of the one that OpenSeadragon would add.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
        "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
STATIC = StaticFiles(packages=[("histoloc.viewer", "static")])
LONGEST_ADDRESS = 2048
READERS = 8  # threads that read and encode tiles; each may hold some 30 MB
_TILE = re.compile(r"([0-9]{1,2})/([0-9]{1,6})_([0-9]{1,6})", re.ASCII)

mimetypes.add_type("text/javascript", ".js")  # Windows may say otherwise, and then browsers do not run it


def make_app(catalog: Catalog, host: str = "127.0.0.1") -> Starlette:
    """The application over a catalog.

    Args:
        catalog: what may be looked at.
        host: name under which the server is reached besides localhost and addresses written in numbers.
    """
    hosts = {host.lower(), "localhost", "ip6-localhost", socket.gethostname().lower()}
    app = Starlette(
        routes=[
            Route("/", _page),
            Mount("/static", STATIC),
            Route("/api/list", _list),
            Route("/api/outlines/{key}", _outlines),
            Route("/api/truth/{key}", _truth),
            Route("/tiles/{key}/{layer}/{level}/{place}", _tile),
        ],
        lifespan=_few_readers,
        exception_handlers={InputError: _input_error, Exception: _unforeseen},
        middleware=[Middleware(Guard, hosts=hosts)],
    )
    app.state.catalog = catalog
    return app


async def _page(request: Request) -> Response:
    return await STATIC.get_response("index.html", request.scope)


def _list(request: Request) -> Response:
    request.app.state.catalog.scan()
    return JSONResponse(request.app.state.catalog.to_json(), headers={"cache-control": "no-store"})


def _outlines(request: Request) -> Response:
    entry = _entry(request)
    return _answer(outlines(entry.regions, entry.label or "ROI", entry.map), "application/geo+json")


def _truth(request: Request) -> Response:
    return _answer(outlines(_entry(request).truth, "truth"), "application/geo+json")


def _tile(request: Request) -> Response:
    entry, layer = _entry(request), request.path_params["layer"]
    place = _TILE.fullmatch("{level}/{place}".format_map(request.path_params))
    if layer not in LAYERS or place is None:
        raise HTTPException(404, "there is no such tile")
    try:
        content = render_tile(entry, layer, *map(int, place.groups()))
    except InputError as error:
        if layer == "picture":
            request.app.state.catalog.note_problem(entry.key, str(error))
        raise
    return _answer(content, "image/jpeg" if layer == "picture" else "image/png")


def _entry(request: Request) -> Entry:
    entry = request.app.state.catalog.entries.get(request.path_params["key"])
    if entry is None:
        raise HTTPException(404, "there is no such slide or image; reload the page")
    return entry


def _answer(content: bytes | None, media_type: str) -> Response:
    """A browser may keep it: the key in its address changes with the file."""
    if content is None:
        raise HTTPException(404, "there is no such tile or layer")
    return Response(content, media_type=media_type, headers={"cache-control": "private, max-age=86400, immutable"})


def _input_error(request: Request, error: Exception) -> Response:
    return PlainTextResponse(request.app.state.catalog.without_folders(str(error)), 410)


def _unforeseen(request: Request, error: Exception) -> Response:
    """The last resort: one line here, and no details to the browser."""
    log.error("%s: %s: %s", type(error).__name__, ascii(request.url.path), " ".join(str(error).split()))
    return PlainTextResponse("something unforeseen happened", 500, HEADERS)


@asynccontextmanager
async def _few_readers(_: Starlette) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = READERS
    yield


class Guard:
    """Refuses foreign host names (a page elsewhere could rebind its name to this machine) and long addresses.

    It adds the headers that keep a browser from running or embedding anything else.
    """

    def __init__(self, app: ASGIApp, hosts: set[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        address = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
        if len(address) + len(scope.get("query_string", b"")) > LONGEST_ADDRESS:
            return PlainTextResponse("the address is too long", 414)
        names = Headers(scope=scope).getlist("host")
        if len(names) != 1 or not is_own_name(names[0], self._hosts):
            return PlainTextResponse("the viewer does not answer under this host name; see --host", 400)
        return None


def is_own_name(host: str, names: set[str]) -> bool:
    """Whether a Host header names this server: one of the names, or an address in numbers, which cannot be rebound."""
    match = re.fullmatch(r"\[?([^\[\]]+?)\]?(:[0-9]{1,5})?", host, re.ASCII)
    name = match[1].lower().rstrip(".") if match else ""
    try:
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
