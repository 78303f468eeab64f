"""The methods: one row each. Adding one means its file, its row here, and a recipe."""

from histoloc.methods.allones import AllOnes
from histoloc.methods.base import Method, Setting
from histoloc.methods.gap import Gap
from histoloc.methods.maxmin import MaxMin

METHODS: dict[str, type[Method]] = {
    "allones": AllOnes,
    "gap": Gap,
    "maxmin": MaxMin,
}

__all__ = ["METHODS", "Method", "Setting"]
