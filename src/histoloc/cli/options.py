"""Options that several commands have; each is declared once."""

from typing import Annotated, Literal

from cyclopts import Parameter

RangeOption = Literal["probability", "learned", "image"] | None
ClassOption = Annotated[str | None, Parameter(name="--class")]
