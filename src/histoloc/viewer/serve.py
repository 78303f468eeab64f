"""`histoloc view`: slides and images with what models say of them, in the browser."""

from __future__ import annotations

import errno
import os
import socket
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from histoloc.bounds import Whole
from histoloc.errors import InputError


def view(
    folders: Annotated[list[Path], Parameter(allow_leading_hyphen=False, negative=())],
    *,
    port: Annotated[Whole, Field(le=65535)] = 8000,
    host: str = "127.0.0.1",
    open_browser: Annotated[bool, Parameter(name="--open", negative=())] = False,
) -> None:
    """Show slides or images in the browser, with heatmap, outlines and uncertainty, until interrupted.

    Args:
        folders: what `histoloc slides predict` or `histoloc evaluate` wrote; several are models side by side.
        port: to listen on; 0 takes a free one.
        host: address to listen on; anything but the default lets others look too, without a password.
        open_browser: open the page in the browser.

    Raises:
        InputError: a folder that cannot be shown, an address that cannot be listened on, or no page server.
    """
    try:
        import uvicorn

        from histoloc.viewer.app import make_app
        from histoloc.viewer.catalog import Catalog
    except ModuleNotFoundError as error:
        raise InputError(f"the viewer needs {error.name}; install it by pip install histoloc[view]") from error

    catalog = Catalog(folders)
    with listen(host, port) as listening:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
        print(f"{address}   (Ctrl+C ends it)", flush=True)
        if open_browser:
            webbrowser.open(address)  # it waits in the queue of the socket until the server is up
        config = uvicorn.Config(
            make_app(catalog, host),
            http="h11",
            ws="none",
            log_level="critical",  # what a stranger sends is no news
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Raises:
        InputError: the port is taken or no port, or the host is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: a port is a number from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise InputError(
                f"--port {port}: cannot be used on {host} ({os.strerror(error.errno)}); choose another --port, "
                "or end what uses it"
            ) from error
        raise InputError(f"--host {host}: is no address of this machine; try 127.0.0.1") from error
