"""Values of parameters: whether they lie in a domain, and one way of writing equal ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopeft.domain.candidate import Setting
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.space import ChoiceDomain, Condition, Domain, FloatDomain, IntDomain, Parameter


def check(parameters: Sequence[Parameter], values: Mapping[str, Setting], space: str) -> dict[str, Setting]:
    """The values of the active parameters, written canonically, in the order of the parameters.

    Raises:
        UserError: where one is missing, outside its domain, not active or unknown.
    """
    problems = []
    active: dict[str, Setting] = {}
    for parameter in parameters:
        name, where = parameter.name, f"space '{space}', {parameter.name}"
        if not parameter.active(active):
            if name in values:
                problems.append(
                    Problem(where, "has a value, but its conditions do not hold", when_text(parameter.when))
                )
        elif name not in values:
            problems.append(Problem(where, "has no value", domain_text(parameter.domain)))
        elif not contains(parameter.domain, values[name]):
            problems.append(Problem(where, f"{values[name]!r} is outside", domain_text(parameter.domain)))
        else:
            active[name] = canonical(values[name], parameter.domain)
    known = [parameter.name for parameter in parameters]
    problems += [unknown(f"space '{space}'", name, known) for name in values if name not in known]
    if problems:
        raise UserError(*problems)
    return active


def contains(domain: Domain, value: Setting) -> bool:
    """Whether the value is one of the domain's; 4.0 is a whole number, True is none."""
    if isinstance(domain, ChoiceDomain):
        return any(same(value, own) for own in domain.values)
    if isinstance(value, bool | str):
        return False
    return domain.low <= value <= domain.high and (isinstance(domain, FloatDomain) or value == int(value))


def canonical(value: Setting, domain: Domain) -> Setting:
    """The one way of writing a value that the domain contains, so that equal candidates have one digest."""
    if isinstance(domain, ChoiceDomain):
        return next(own for own in domain.values if same(value, own))
    return int(value) if isinstance(domain, IntDomain) else float(value) + 0.0  # + 0.0 turns -0.0 into 0.0


def extremes(
    domain: Domain, only: Sequence[Setting] | None = None, never: Sequence[Setting] = ()
) -> tuple[Setting, ...]:
    """The values at which a mistake shows: both ends of numbers, every value of an unordered choice.

    `only`, where given, are the values that are left of the domain; `never` are some that are not.
    """
    if isinstance(domain, ChoiceDomain) or only is not None:
        values = domain.values if isinstance(domain, ChoiceDomain) and only is None else tuple(only or ())
        values = tuple(value for value in values if not any(same(value, one) for one in never))
        numbers = [value for value in values if not isinstance(value, bool | str)]
        ordered = not isinstance(domain, ChoiceDomain) or domain.ordered
        return (min(numbers), max(numbers)) if ordered and numbers and len(numbers) == len(values) else values
    low, high = domain.low, domain.high
    if isinstance(domain, IntDomain):
        while low in never and low < high:
            low += 1
        while high in never and low < high:
            high -= 1
    return (low, high)


def domain_text(domain: Domain) -> str:
    """A domain in a few words: `1 to 64`, `0.0001 to 0.005, log scale`, `a, b, c`."""
    if isinstance(domain, ChoiceDomain):
        return ", ".join(_text(value) for value in domain.values)
    return f"{_text(domain.low)} to {_text(domain.high)}{', log scale' if domain.log else ''}"


def when_text(when: Sequence[Condition], domains: Mapping[str, Domain] | None = None) -> str:
    """Conditions in words; empty where there are none. With the domains, the shorter of "is" and "is not"."""
    return " and ".join(_condition_text(condition, (domains or {}).get(condition.parameter)) for condition in when)


def _condition_text(condition: Condition, domain: Domain | None) -> str:
    values, word = condition.values, "is"
    if isinstance(domain, ChoiceDomain):
        others = tuple(value for value in domain.values if not any(same(value, one) for one in values))
        if 0 < len(others) < len(values):
            values, word = others, "is not"
    return f"{condition.parameter} {word} {' or '.join(_text(value) for value in values)}"


def _text(value: Setting) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def same(value: Setting, other: Setting) -> bool:
    """Whether two values are equal, where True is not 1 and '1' is not 1."""
    kinds = [str if isinstance(one, str) else bool if isinstance(one, bool) else float for one in (value, other)]
    return kinds[0] is kinds[1] and value == other
