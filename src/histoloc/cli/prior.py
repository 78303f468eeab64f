"""`histoloc prior`: where structures lie, learned from drawn images alone."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from histoloc import prior as priors
from histoloc.prior import AdaptOptions, MakeOptions
from histoloc.prior_card import list_priors

app = App(name="prior", help="Priors: models that learned from drawn images alone where structures lie.")


@app.command
def make(
    *,
    out: Path,
    options: Annotated[MakeOptions, Parameter(name="*")] = MakeOptions(),  # noqa: B008
) -> None:
    """Draw images of a scene, train a prior on them, and write its model folder, OUT/model.

    No real image is looked at. 1200 images take five minutes to draw and ten to learn on a core.

    Args:
        out: folder for the images, the run and the prior. A second call keeps the images that are there.
        options: how.
    """
    print(priors.make(out, options))


@app.command
def adapt(
    prior: str,
    *,
    data: Path,
    out: Path,
    options: Annotated[AdaptOptions, Parameter(name="*")] = AdaptOptions(),  # noqa: B008
) -> None:
    """Adapt a prior to your stain and scanner: OUT/model is a prior like any other.

    Neither labels nor masks of the images are read, and of a table only the rows of split train.

    Args:
        prior: one that is shipped (`prior:NAME`), a run or a model folder.
        data: a table (CSV), or a folder of images.
        out: folder for drawn images, the run and the prior. A second call keeps the images that are there.
        options: how.
    """
    print(priors.adapt(prior, data, out, options))


@app.command(name="list")
def list_shipped() -> None:
    """List the priors that are shipped: scene, µm/px, size, checksum, and what each of them saw."""
    print("\n".join(list_priors()) or "no prior is shipped; `histoloc prior make` makes one")
