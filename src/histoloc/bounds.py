"""Numbers that options may have: a type for each range, the same for the command line, YAML and Python."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Parameter
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from histoloc.errors import InputError

# As pydantic says it, and shorter.
_WORDS = {
    "Value error, ": "", "Input should": "must", "should": "must", "greater than or equal to": "at least",
    "less than or equal to": "at most", "greater than": "above", "less than": "below",
}  # fmt: skip
_LARGEST = 2**63 - 1


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # which Python takes for 0 and 1
        raise ValueError("must be a number")
    return value


def _without_fraction(text: str) -> int:
    """`30` or `30.0`."""
    whole, _, rest = text.partition(".")
    return int(whole) if not rest.strip("0") else int(text)


def _read(kind: type[int | float], tokens: Sequence[Any]) -> Any:
    """A number of the command line; Cyclopts would round 1.5 for a whole one."""
    text = tokens[0].value.lower()
    with suppress(ValueError):
        return None if text in ("none", "null") else _without_fraction(text) if kind is int else float(text)
    raise ValueError(f"must be a {'whole ' * (kind is int)}number")


Integer = Annotated[int, Field(le=_LARGEST), BeforeValidator(_number), Parameter(converter=_read)]
Whole = Annotated[Integer, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_number), Parameter(converter=_read)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
PartBelowOne = Annotated[Number, Field(ge=0, lt=1)]
ShareAboveNone = Annotated[Number, Field(gt=0, le=1)]
Scales = Annotated[tuple[Positive, ...], Field(min_length=1)]


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("must have the smaller number first")
    return pair


Interval = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]


class Checked:
    """Of a dataclass with options: its values are those that the types of its fields allow."""

    def __post_init__(self) -> None:
        """Refuse what is out of range, and make paths of texts."""
        check_options(self)


def check_options(options: Any) -> None:
    """Check a dataclass against the bounds that its fields declare; texts for paths, and lists for tuples, become such.

    Raises:
        InputError: names the first option that is outside.
    """
    for name, (flag, adapter) in _adapters(type(options)).items():
        value = getattr(options, name)
        try:
            object.__setattr__(options, name, adapter.validate_python(value))
        except ValidationError as error:
            raise InputError(f"{flag} {str(value)[:100]} is wrong ({reason(error)}); correct it") from error


@cache
def _adapters(kind: type[Any]) -> dict[str, tuple[str, TypeAdapter[Any]]]:
    """By field the option's name and what checks its values."""
    hints = get_type_hints(kind, include_extras=True)
    adapters: dict[str, tuple[str, TypeAdapter[Any]]] = {}
    for field in fields(kind):
        hint = hints[field.name]
        names = [name for part in get_args(hint) if isinstance(part, Parameter) for name in part.name or ()]
        adapters[field.name] = ([*names, f"--{field.name.replace('_', '-')}"][0], TypeAdapter(hint))
    return adapters


def reason(error: ValidationError, number: int = 0) -> str:
    """What pydantic says to be wrong with a value, as `must be at least 1`."""
    text = error.errors()[number]["msg"]
    for long, short in _WORDS.items():
        text = text.replace(long, short)
    return text
