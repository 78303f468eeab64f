"""`histoloc view`: slides and images with what models say of them, in the browser."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Folders = Annotated[list[Path], Parameter(allow_leading_hyphen=False, negative=())]


def view(
    folders: Folders,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    open_browser: Annotated[bool, Parameter(name="--open", negative=())] = False,
) -> None:
    """Show slides or images in the browser, with heatmap, outlines and uncertainty.

    Args:
        folders: what `histoloc slides predict` or `histoloc evaluate` wrote; several are models side by side.
        port: to listen on; 0 takes a free one.
        host: address to listen on; anything but the default lets others look too, without a password.
        open_browser: open the page in the browser.
    """
    from histoloc.viewer.serve import view as serve

    serve(folders, port=port, host=host, open_browser=open_browser)
