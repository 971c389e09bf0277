"""Every method of the installed peft is registered, or left out with a reason."""

from __future__ import annotations

from functools import cache

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from autopeft.domain.candidate import Insertion
from autopeft.domain.layout import ModelLayout
from autopeft.evaluate.methods import METHODS, UNREGISTERED, Method, PeftMethod
from tests.contract.method_runs import base_of

SMALL = {"rank": 2, "num_virtual_tokens": 4, "block_size": 4, "oft_block_size": 4, "boft_block_size": 4}


@cache
def layouts() -> tuple[ModelLayout, ...]:
    return tuple(base_of(kind).layout for kind in ("bert", "llama"))


def peft_type_of(method: Method) -> str:
    """Which type of peft a method's configuration is of, on the first toy model of its tasks."""
    layout = next(layout for layout in layouts() if layout.task in method.facts.tasks)
    settings = {name: SMALL.get(name, value) for name, value in method.facts.defaults.items()}
    insertion = Insertion(
        method=method.name,
        layers=tuple(range(len(layout.layers))),
        modules=method.default_modules(layout) if method.facts.takes_modules else (),
        settings=settings,
    )
    assert isinstance(method, PeftMethod)
    return PeftType(method.config(insertion, layout, 10).peft_type).value


@cache
def covered() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for method in METHODS.values():
        if isinstance(method, PeftMethod):
            found.setdefault(peft_type_of(method), []).append(method.name)
    return found


@pytest.mark.parametrize("kind", sorted(one.value for one in PeftType))
def test_a_type_of_peft_is_registered_or_left_out_with_a_reason(kind: str) -> None:
    registered, reason = covered().get(kind, []), UNREGISTERED.get(kind)
    assert registered or reason, (
        f"peft has {kind} and nobody here knows it: write a method for it in autopeft/evaluate/methods/, or say in "
        f"UNREGISTERED of autopeft/evaluate/methods/unregistered.py why none can be trained"
    )
    assert not (registered and reason), f"{kind} is registered as {registered}, so that its reason must go"


def test_every_reason_is_of_a_type_that_peft_still_has() -> None:
    assert [kind for kind in UNREGISTERED if kind not in PeftType.__members__] == []
    assert all(len(reason.split()) > 4 for reason in UNREGISTERED.values())


def test_peft_itself_knows_no_type_beyond_its_list() -> None:
    assert {PeftType(kind).value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} <= {one.value for one in PeftType}


def test_a_method_says_which_library_implements_it() -> None:
    for method in METHODS.values():
        assert (method.facts.library == "peft") is isinstance(method, PeftMethod), method.name
