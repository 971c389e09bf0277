"""Models as JSON text that every reader takes."""

import json
import math

import pytest

from autopeft.store.rows import from_text, to_text
from tests.contract.run_samples import measurements_of


def strict(text):
    """Parse as a reader does that keeps to the standard.

    Raises:
        ValueError: for NaN and Infinity.
    """

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_text_with_a_float_that_json_lacks_is_still_json(value):
    text = to_text(measurements_of(value, train_s=value))
    strict(text)
    back = from_text(text)
    assert repr(back["quality"]["accuracy"]) == repr(back["train_s"]) == repr(float(value))


def test_text_of_ordinary_values_is_ordinary_json():
    value = {"a": [1, 2.5, "x", None, True], "b": {"c": []}}
    assert strict(to_text(value)) == value == from_text(to_text(value))


@pytest.mark.parametrize(
    "value", [{"$float": "1.0"}, {"$float": "NaN", "more": 1}, {"$float": 3}, ["$float"], "$float"]
)
def test_what_only_looks_like_such_a_float_stays_as_it_is(value):
    assert from_text(to_text(value)) == value


def test_text_is_ascii_so_that_no_encoding_can_spoil_it():
    text = to_text({"a": "日本\0\ud800"})
    assert text.isascii()
    assert "\0" not in text
    assert from_text(text) == {"a": "日本\0\ud800"}
