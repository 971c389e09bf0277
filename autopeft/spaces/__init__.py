"""Search spaces: YAML files, conditions, and binding to a model's layout."""

from autopeft.spaces.binding import BoundSpace, bind
from autopeft.spaces.describing import ParameterRow, describe
from autopeft.spaces.file import SearchSpaceFile
from autopeft.spaces.library import SpaceSummary, available, load_space
from autopeft.spaces.reading import parse

__all__ = [
    "BoundSpace",
    "ParameterRow",
    "SearchSpaceFile",
    "SpaceSummary",
    "available",
    "bind",
    "describe",
    "load_space",
    "parse",
]
