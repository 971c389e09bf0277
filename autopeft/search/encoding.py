"""Parameters as Optuna distributions, and their values there and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial as OptunaTrial

from autopeft.domain.candidate import Setting
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.space import ChoiceDomain, Domain, FloatDomain, IntDomain, Parameter

Encoded = int | float
"""What Optuna sees: numbers as they are, a choice as the index of its value (so that 1, True and 1.0 stay apart)."""


def distribution(domain: Domain) -> BaseDistribution:
    """The Optuna distribution of a domain; an ordered choice is a whole number, so that neighbours are alike."""
    match domain:
        case IntDomain():
            return IntDistribution(domain.low, domain.high, log=domain.log)
        case FloatDomain():
            return FloatDistribution(domain.low, domain.high, log=domain.log)
        case ChoiceDomain(ordered=True):
            return IntDistribution(0, len(domain.values) - 1)
        case ChoiceDomain():
            return CategoricalDistribution(tuple(range(len(domain.values))))


def suggest(trial: OptunaTrial, parameters: Sequence[Parameter]) -> dict[str, Setting]:
    """Ask Optuna for the active parameters, parents first."""
    values: dict[str, Setting] = {}
    for parameter in parameters:
        if not parameter.active(values):
            continue
        domain, name = parameter.domain, parameter.name
        match domain:
            case IntDomain():
                values[name] = trial.suggest_int(name, domain.low, domain.high, log=domain.log)
            case FloatDomain():
                values[name] = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
            case ChoiceDomain(ordered=True):
                values[name] = domain.values[trial.suggest_int(name, 0, len(domain.values) - 1)]
            case ChoiceDomain():
                values[name] = domain.values[trial.suggest_categorical(name, tuple(range(len(domain.values))))]
    return values


def encode(
    parameters: Sequence[Parameter], values: Mapping[str, Setting]
) -> tuple[dict[str, Encoded], dict[str, BaseDistribution]]:
    """Stored values as Optuna's parameters and distributions.

    Raises:
        UserError: where a stored value does not belong to the space: it was changed since.
    """
    encoded: dict[str, Encoded] = {}
    distributions: dict[str, BaseDistribution] = {}
    for parameter in parameters:
        name = parameter.name
        if not parameter.active(values):
            continue
        if name not in values or not _contains(parameter.domain, values[name]):
            found = f"holds {values[name]!r}" if name in values else "is missing"
            raise UserError(
                Problem(
                    "space",
                    f"in a stored trial, {name} {found}, which the space does not allow",
                    "trials of this very space",
                    "The space was changed since the run began: undo the change, or give the run another --name.",
                )
            )
        encoded[name] = _index(parameter.domain, values[name])
        distributions[name] = distribution(parameter.domain)
    return encoded, distributions


def enumerate_values(parameters: Sequence[Parameter]) -> Iterator[dict[str, Setting]]:
    """Every setting of the active parameters, the last parameter changing fastest; finite spaces only."""
    yield from _enumerate(parameters, 0, {})


def _enumerate(parameters: Sequence[Parameter], index: int, chosen: dict[str, Setting]) -> Iterator[dict[str, Setting]]:
    if index == len(parameters):
        yield chosen
        return
    parameter = parameters[index]
    if not parameter.active(chosen):
        yield from _enumerate(parameters, index + 1, chosen)
        return
    for value in _finite(parameter.domain):
        yield from _enumerate(parameters, index + 1, {**chosen, parameter.name: value})


def _finite(domain: Domain) -> Sequence[Setting]:
    match domain:
        case ChoiceDomain():
            return domain.values
        case IntDomain():
            return range(domain.low, domain.high + 1)
        case FloatDomain():
            return (domain.low,)


def _contains(domain: Domain, value: Setting) -> bool:
    if isinstance(domain, ChoiceDomain):
        return any(_same(value, own) for own in domain.values)
    return not isinstance(value, bool | str) and domain.low <= value <= domain.high


def _index(domain: Domain, value: Setting) -> Encoded:
    if isinstance(domain, ChoiceDomain):
        return next(index for index, own in enumerate(domain.values) if _same(value, own))
    assert not isinstance(value, str)
    return int(value) if isinstance(domain, IntDomain) else float(value)


def _same(value: Setting, own: Setting) -> bool:
    """Equal after a trip through JSON; True is not 1."""
    return value == own and isinstance(value, bool) == isinstance(own, bool)
