"""Start the viewer on this machine."""

from __future__ import annotations

import errno
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from histoloc.errors import InputError
from histoloc.viewer.app import make_app
from histoloc.viewer.catalog import Catalog


def view(folders: Sequence[Path], *, port: int = 8000, host: str = "127.0.0.1", open_browser: bool = False) -> None:
    """Show folders in the browser until interrupted.

    Args:
        folders: that `histoloc slides predict` or `histoloc evaluate` wrote; several are models side by side.
        port: to listen on, from 1 to 65535; 0 takes a free one.
        host: address to listen on; anything but a loopback address lets others look too, without a password.
        open_browser: open the page.

    Raises:
        InputError: a folder that cannot be shown, or an address that cannot be listened on.
    """
    import uvicorn

    catalog = Catalog(folders)
    listening = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    print(f"{address}   (Ctrl+C ends it)", flush=True)
    config = uvicorn.Config(
        make_app(catalog, host),
        http="h11",
        ws="none",
        log_level="critical",  # what a stranger sends is no news
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    if open_browser:
        webbrowser.open(address)  # it waits in the queue of the socket until the server is up
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Raises:
        InputError: the port is taken or no port, or the host is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: a port is a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: is no address of this machine; try 127.0.0.1") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"--host {host}: is no address of this machine; try 127.0.0.1") from error
        raise InputError(
            f"--port {port}: cannot be used on {host} ({error.strerror}); choose another --port, or end what uses it"
        ) from error
    return listening
