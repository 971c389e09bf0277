"""Top of the page: what was searched with what, what came out, and the points to take."""

from __future__ import annotations

import time
from dataclasses import dataclass

from autopeft.domain.budget import Budget, Spent
from autopeft.domain.calibration import prediction_errors
from autopeft.domain.fidelity import saved_by_stopping
from autopeft.domain.objective import Objective, Unit
from autopeft.domain.repetition import Estimate, believed
from autopeft.domain.results import PICKS, RunResults, ScoredTrial
from autopeft.domain.trial import TrialStatus

from .numbers import candidate_lines, label, seconds, text_of


@dataclass(frozen=True)
class Number:
    """One number under its name."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One recommended point."""

    number: int
    picks: tuple[str, ...]
    """Every recommendation that it is: `knee`, `most-accurate`, `smallest`."""
    values: tuple[Number, ...]
    test: Number | None
    candidate: str
    """What was trained, in one line."""
    command: str


@dataclass(frozen=True)
class HeaderRecord:
    """Everything above the first figure."""

    name: str
    facts: tuple[tuple[str, str], ...]
    """Name and text: model, data, space, sampler, budget."""
    headline: str
    counts: tuple[tuple[TrialStatus, int], ...]
    cards: tuple[Card, ...]


def header_record(results: RunResults) -> HeaderRecord:
    """What the top of the page says about a run."""
    spec, task = results.record.spec, results.record.task
    rows = ", ".join(f"{count:,} {split}" for split, count in task.rows.items())
    data = spec.data.source or spec.data.train or ""
    data += f" ({spec.data.subset})" if spec.data.subset else ""
    kind = f"{len(task.labels)} classes" if task.labels else task.kind
    facts = (
        ("Model", spec.model.source + (f" @ {spec.model.revision}" if spec.model.revision else "")),
        ("Data", f"{data} · {kind} · {rows} rows"),
        ("Space", spec.space),
        ("Sampler", f"{spec.sampler.name}, seed {spec.seed}"),
        ("Budget used", budget_text(results.budget, results.spent)),
        *stopping_facts(results),
        *memory_facts(results),
        ("Started", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(results.record.created_at))),
    )
    return HeaderRecord(
        name=results.record.name,
        facts=facts,
        headline=headline(results),
        counts=tuple(results.counts().items()),
        cards=cards(results),
    )


def stopping_facts(results: RunResults) -> list[tuple[str, str]]:
    """What early stopping saved, where a trial was stopped."""
    saved = saved_by_stopping(results.record, (one.trial for one in results.trials))
    if saved is None:
        return []
    trials = f"{saved.trials:,} trial{'s' if saved.trials != 1 else ''} stopped"
    return [
        (
            "Saved by stopping early",
            f"{saved.samples:,} training samples, {100 * saved.share:.0f} % of those planned; {trials}",
        )
    ]


def memory_facts(results: RunResults) -> list[tuple[str, str]]:
    """The limit, how well memory was predicted, and what an objective that is only predicted is predicted for."""
    spec, trials = results.record.spec, [one.trial for one in results.trials]
    found = []
    if spec.max_memory is not None:
        found.append(("Memory limit", text_of(float(spec.max_memory), Unit.BYTES)))
    refused, errors = sum(trial.refused for trial in trials), prediction_errors(trials)
    if refused:
        found.append(("Refused", f"{refused:,} before training, for what was predicted of them; not in the budget"))
    if errors is not None:
        found.append(("Memory predicted", str(errors)))
    if spec.predict_for is not None:
        found.append(("Predicted peak", f"predicted and never measured, for {spec.predict_for}"))
    return found


def budget_text(budget: Budget, spent: Spent) -> str:
    """Used of allowed for every limit, and the wall time: `12 of 16 trials · 8 min 3 s`."""
    parts = [
        f"{spent.trials:,} of {budget.trials:,} trials" if budget.trials is not None else f"{spent.trials:,} trials"
    ]
    limit = f" of {seconds(budget.seconds)}" if budget.seconds is not None else ""
    parts.append(seconds(spent.seconds) + limit)
    if budget.gpu_seconds is not None:
        parts.append(f"{spent.gpu_seconds / 3600:.2g} of {budget.gpu_seconds / 3600:g} GPU-h")
    elif spent.gpu_seconds:
        parts.append(f"{spent.gpu_seconds / 3600:.2g} GPU-h")
    return " · ".join(parts)


def recommended(results: RunResults) -> dict[int, tuple[str, ...]]:
    """Recommendations by trial number, in the order of `PICKS`; empty where the front is."""
    found: dict[int, tuple[str, ...]] = {}
    if results.front.members:
        for pick in PICKS:
            number = results.front.pick(pick).trial.number
            found[number] = (*found.get(number, ()), pick)
    return found


def metric_unit(metric: str) -> Unit:
    """The unit of a task metric."""
    if metric in ("validation_loss", "perplexity"):
        return Unit.NUMBER
    return Unit.CORRELATION if metric in ("matthews", "spearman") else Unit.FRACTION


def test_score(results: RunResults, one: ScoredTrial) -> float | None:
    """The hold-out score of a trial in the task's headline metric, None where it was not scored."""
    return (one.trial.test_quality or {}).get(results.record.task.metric)


def majority(results: RunResults) -> float | None:
    """What the most frequent class or choice reaches, where the headline metric is an accuracy of these."""
    task = results.record.task
    return task.majority_share if task.metric in ("accuracy", "choice_accuracy") else None


def headline(results: RunResults) -> str:
    """One sentence about the front, or about why there is none."""
    counts = results.counts()
    if not results.trials:
        return "No trial has run yet."
    if not results.front.members:
        running = sum(count for status, count in counts.items() if not status.ended)
        if counts.get(TrialStatus.INFEASIBLE, 0) == len(results.trials):
            return "Every trial was infeasible: none fits into the memory limit. Raise it or pick a smaller model."
        if running:
            return f"No trial is complete yet; {running} {'is' if running == 1 else 'are'} waiting or running."
        return "No trial completed. The trial table below names the reason of each."
    best = results.front.pick("most-accurate")
    first, rest = results.objectives[0], results.objectives[1:]
    values = best.values or ()
    text = f"Best {label(first).lower()} {text_of(values[0], first.unit)}"
    if rest:
        text += f" at {text_of(values[1], rest[0].unit)} {label(rest[0]).lower()}"
    score, guess = test_score(results, best), majority(results)
    unit = metric_unit(results.record.task.metric)
    asides = [f"{text_of(score, unit)} on test"] if score is not None else []
    asides += [f"{text_of(guess, unit)} for the majority class"] if guess is not None else []
    text += f" ({', '.join(asides)})" if asides else ""
    count = len(results.front.members)
    return f"{text}. The front has {count} {'point' if count == 1 else 'points'}."


def cards(results: RunResults) -> tuple[Card, ...]:
    """The recommended points; one that is recommended twice has one card with both names."""
    by_number = {one.trial.number: one for one in results.front.members}
    unit, metric = metric_unit(results.record.task.metric), results.record.task.metric
    guess, quality = majority(results), results.quality_objective()
    estimates = believed(results.objectives, results.trials).estimates
    note = "" if guess is None else f"majority class {text_of(guess, unit)}"
    made = []
    for number, picks in recommended(results).items():
        one = by_number[number]
        values = tuple(
            Number(
                label(objective),
                text_of(value, objective.unit),
                _observed(estimates.get(number), objective) if objective is quality else "",
            )
            for objective, value in zip(results.objectives, one.values or (), strict=True)
        )
        score = test_score(results, one)
        made.append(
            Card(
                number=number,
                picks=picks,
                values=values,
                test=None if score is None else Number(f"Test {metric}", text_of(score, unit), note),
                candidate=" · ".join(f"{what}: {how}" for what, how in candidate_lines(one.trial.candidate)),
                command=f"autopeft export {results.record.name} --pick {picks[0]}",
            )
        )
    return tuple(made)


def _observed(estimate: Estimate | None, objective: Objective) -> str:
    """Beside a posterior mean: what was observed."""
    if estimate is None:
        return ""
    times = "once" if estimate.count == 1 else f"{estimate.count} times"
    spread = "" if estimate.spread is None else f" ± {text_of(estimate.spread, objective.unit)}"
    return f"posterior mean; observed {times}, {text_of(estimate.mean, objective.unit)}{spread}"
