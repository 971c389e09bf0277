"""How many settings of conditional parameters stand for a candidate, without going through them one by one.

Of a parameter's values only those must be told apart that a condition asks for, and of a choice of layers only whether
an insertion gets any. So the parameters are gone through once, in order, with the number of settings for each set of
answers that still matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopeft.domain.candidate import Setting
from autopeft.domain.space import ChoiceDomain, Condition, FloatDomain, IntDomain, Parameter
from autopeft.spaces.file import reference
from autopeft.spaces.layers import LayerChoice

if TYPE_CHECKING:
    from autopeft.spaces.bound import BoundInsertion, Unit


@dataclass(frozen=True)
class _Holds:
    """Whether a parameter exists and has one of these values."""

    condition: Condition
    missing: bool = False
    """The answer where it does not exist."""

    @property
    def unit(self) -> str:
        return self.condition.parameter.removesuffix(".mode")


@dataclass(frozen=True)
class _Touches:
    """Whether a choice of layers holds any of some layers."""

    unit: str
    layers: frozenset[int]
    missing: bool = False


_Question = _Holds | _Touches
_Answers = frozenset[_Question]
"""The questions that are answered with yes."""


@dataclass(frozen=True)
class _Presence:
    """The questions that decide whether an insertion is there: all of `needs`, one of `either`, none of `never`."""

    needs: _Answers
    never: _Answers
    either: _Answers

    @property
    def questions(self) -> _Answers:
        return self.needs | self.never | self.either

    def holds(self, answers: _Answers) -> bool:
        return self.needs <= answers and not self.never & answers and (not self.either or bool(self.either & answers))


@dataclass(frozen=True)
class _State:
    answers: _Answers = frozenset()
    insertions: int = 0
    """So far, counted up to the number that is needed."""
    continuous: bool = False


def size(units: Sequence[Unit], insertions: Sequence[BoundInsertion], at_least: int) -> int | None:
    """Exact number of settings with at least so many insertions; None where one of them has a continuous parameter."""
    waiting = [_presence(one, units) for one in insertions] if at_least else []
    states = Counter({_State(): 1})
    known: set[str] = set()
    states, waiting = _settle(states, waiting, known, at_least, units)
    for place, unit in enumerate(units):
        asked = {question for one in waiting for question in one.questions if question.unit == unit.name}
        asked |= {
            _Holds(condition)
            for later in units[place + 1 :]
            for condition in later.when
            if condition.parameter.removesuffix(".mode") == unit.name
        }
        missing = frozenset(question for question in asked if question.missing)
        outcomes = _outcomes(unit, frozenset(asked))
        reached: Counter[_State] = Counter()
        for state, number in states.items():
            exists = all(_Holds(condition) in state.answers for condition in unit.when)
            for answers, weight, continuous in outcomes if exists else [(missing, 1, False)]:
                after = _State(state.answers | answers, state.insertions, state.continuous or continuous)
                reached[after] += number * weight
        known.add(unit.name)
        states, waiting = _settle(reached, waiting, known, at_least, units[place + 1 :])
    valid = {state: number for state, number in states.items() if state.insertions >= at_least}
    return None if any(state.continuous for state in valid) else sum(valid.values())


def _settle(
    states: Counter[_State], waiting: list[_Presence], known: set[str], at_least: int, later: Sequence[Unit]
) -> tuple[Counter[_State], list[_Presence]]:
    """Count the insertions whose questions are all answered, and forget the answers that nobody needs any more."""
    ready = [one for one in waiting if all(question.unit in known for question in one.questions)]
    waiting = [one for one in waiting if one not in ready]
    needed = {question for one in waiting for question in one.questions}
    needed |= {_Holds(condition) for unit in later for condition in unit.when}
    settled: Counter[_State] = Counter()
    for state, number in states.items():
        there = sum(one.holds(state.answers) for one in ready)
        left = _State(state.answers & needed, min(at_least, state.insertions + there), state.continuous)
        settled[left] += number
    return settled, waiting


def _presence(insertion: BoundInsertion, units: Sequence[Unit]) -> _Presence:
    by_name = {unit.name: unit for unit in units}

    def holds(condition: Condition) -> _Holds:
        unit = by_name.get(condition.parameter)
        return _Holds(condition, unit is not None and unit.otherwise in condition.values)

    either: set[_Question] = set()
    layers, method = reference(insertion.template.layers), reference(insertion.template.method)
    if layers in by_name:
        choice = by_name[layers].layers
        assert choice is not None
        either.add(_Touches(layers, frozenset(insertion.part), choice.spec.otherwise == "all"))
    whole = tuple(name for name, one in insertion.methods.items() if not one.facts.takes_layers)
    if layers is not None and method is not None and whole:
        either.add(holds(Condition(parameter=method, values=whole)))
    return _Presence(
        needs=frozenset(_Holds(condition) for condition in insertion.when),
        never=frozenset(holds(condition) for condition in insertion.unless),
        either=frozenset(either),
    )


def _outcomes(unit: Unit, asked: _Answers) -> list[tuple[_Answers, int, bool]]:
    """What the values of an existing parameter answer: yes to which questions, how many values, any real number."""
    if unit.layers is not None:
        number: Counter[_Answers] = Counter()
        touching = frozenset(question for question in asked if isinstance(question, _Touches))
        for mode in dict.fromkeys(unit.layers.spec.modes):
            said = {one for one in asked if isinstance(one, _Holds) and mode in one.condition.values}
            for answers, weight in _touched(unit.layers, mode, touching).items():
                number[answers | said] += weight
        return [(answers, weight, False) for answers, weight in number.items()]
    found = [(frozenset[_Question](), 1, False)]
    for parameter in unit.parameters:
        own = list(_scalar(parameter, asked))
        found = [
            (answers | more, weight * times, continuous or real)
            for answers, weight, continuous in found
            for more, times, real in own
        ]
    return found


def _scalar(parameter: Parameter, asked: _Answers) -> Iterator[tuple[_Answers, int, bool]]:
    domain = parameter.domain
    if isinstance(domain, FloatDomain):
        yield frozenset(), 1, domain.size() is None
        return
    about = [one for one in asked if isinstance(one, _Holds) and one.condition.parameter == parameter.name]
    named: set[Setting] = {value for one in about for value in one.condition.values}
    values = _values(domain, named)
    number = Counter(frozenset[_Question](one for one in about if value in one.condition.values) for value in values)
    number[frozenset()] += (domain.size() or 0) - len(values)
    yield from ((answers, weight, False) for answers, weight in number.items() if weight)


def _values(domain: ChoiceDomain | IntDomain, named: set[Setting]) -> list[Setting]:
    """The values that any question tells apart from the rest."""
    if isinstance(domain, ChoiceDomain):
        return list(domain.values)
    return [value for value in named if not isinstance(value, str) and domain.low <= value <= domain.high]


def _touched(choice: LayerChoice, mode: str, asked: frozenset[_Touches]) -> Counter[_Answers]:
    """How many choices of one mode hold layers of which insertions."""

    def touched(layers: range) -> _Answers:
        return frozenset(one for one in asked if any(index in layers for index in one.layers))

    depth, least = choice.depth, choice.spec.at_least
    if mode == "top-k":
        return Counter(touched(range(depth - count, depth)) for count in range(least, choice.most + 1))
    if mode == "range":
        return Counter(
            touched(range(first, min(depth, first + count)))
            for first in range(depth - least + 1)
            for count in range(least, choice.most + 1)
        )
    number: Counter[_Answers] = Counter({frozenset(): 1})
    for index in range(depth):
        with_layer: Counter[_Answers] = Counter()
        for answers, weight in number.items():
            with_layer[answers | touched(range(index, index + 1))] += weight
        number += with_layer
    return number
