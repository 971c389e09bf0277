"""A loss is a quality like an accuracy: picks, defaults and reports go by it, although less of it is better."""

from __future__ import annotations

import pytest

from autopeft.app.objectives import default_objectives, load_objectives
from autopeft.app.planning import _objective_problems
from autopeft.domain.candidate import Candidate
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.objective import Direction, Unit
from autopeft.domain.results import Front, TaskInfo, score
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Trial, TrialStatus
from dashboards.front import front_records
from dashboards.header import cards, headline
from dashboards.numbers import scale_of, text_of
from tests.contract.run_samples import results_of

LIKELIHOODS = ("validation_loss", "perplexity", "token_accuracy")
TASK = TaskInfo(kind="causal-lm", metric="validation_loss", metrics=LIKELIHOODS, rows={"train": 8, "validation": 4})
SPEC = SearchSpec()
POINTS = ((3.0, 100), (2.0, 200), (1.5, 400), (2.5, 400))


def trial(number: int, loss: float, size: int) -> Trial:
    peak = PeakMemory(live_bytes=size, source=MemorySource.TRACKED)
    return Trial(
        number=number,
        candidate=Candidate(insertions=(), learning_rate=1e-3 * (number + 1)),
        parameters={"learning_rate": 1e-3 * (number + 1)},
        seed=0,
        status=TrialStatus.COMPLETE,
        measurements=Measurements(quality={"validation_loss": loss}, train_peak=peak),
        test_quality={"validation_loss": loss + 0.25},
    )


def test_the_headline_metric_is_searched_against_memory() -> None:
    first, second = default_objectives(TASK)
    assert (first.name, first.direction, first.is_quality) == ("validation_loss", Direction.MINIMIZE, True)
    assert (second.name, second.is_quality) == ("train_peak_bytes", False)
    chosen = default_objectives(TASK.model_copy(update={"metric": "choice_accuracy"}))[0]
    assert (chosen.direction, chosen.is_quality) == (Direction.MAXIMIZE, True)


@pytest.mark.parametrize("names", [("validation_loss", "train_peak_bytes"), ("train_peak_bytes", "validation_loss")])
def test_the_most_accurate_point_is_the_one_with_the_least_loss(names: tuple[str, ...]) -> None:
    objectives = load_objectives(names)
    front = Front.of(objectives, [score(trial(number, *point), objectives) for number, point in enumerate(POINTS)])
    assert front.numbers == {0, 1, 2}
    assert front.quality_column == names.index("validation_loss")
    assert front.pick("most-accurate").trial.number == 2
    assert front.pick("smallest").trial.number == 0
    assert front.pick("validation_loss<=2").trial.number == 1


@pytest.mark.parametrize("names", [("validation_loss",), ("train_s", "validation_loss")])
def test_a_loss_is_never_taken_for_a_size(names: tuple[str, ...]) -> None:
    objectives = load_objectives(names)
    front = Front(objectives, ())
    assert front._size_column == 0


@pytest.mark.parametrize("name", [*LIKELIHOODS, "choice_accuracy", "exact_match"])
def test_every_metric_of_a_language_model_is_an_objective(name: str) -> None:
    (objective,) = load_objectives((name,))
    assert objective.is_quality
    assert objective(Measurements(quality={name: 0.25})) == 0.25
    assert objective(Measurements()) != objective(Measurements())  # NaN


def test_objectives_that_the_task_cannot_have_are_refused_with_what_to_do() -> None:
    assert _objective_problems(load_objectives(("validation_loss", "train_peak_bytes")), TASK, SPEC) == []
    (problem,) = _objective_problems(load_objectives(("exact_match",)), TASK, SPEC)
    assert "cannot be measured on a causal-lm task" in problem.found
    assert "--metric exact_match" in problem.next_step
    (problem,) = _objective_problems(load_objectives(("accuracy",)), TASK, SPEC)
    assert problem.next_step == "See `autopeft objectives`."


def test_reports_put_the_loss_on_the_y_axis_and_print_it_as_a_number() -> None:
    objectives = load_objectives(("train_peak_bytes", "validation_loss"))
    trials = [trial(number, *point) for number, point in enumerate(POINTS)]
    results = results_of(trials, objectives=objectives, task=TASK)
    assert results.quality_objective() is objectives[1]
    (record,) = front_records(results)
    assert record.y.name == "validation_loss"
    assert {(point.x, point.y) for point in record.points if point.on_front} == {
        (size, loss) for loss, size in POINTS[:3]
    }
    assert record.stairs == ((100.0, 3.0), (200.0, 2.0), (400.0, 1.5))
    assert record.guess is None
    assert "1.75 on test" in headline(results_of(trials, objectives=objectives[::-1], task=TASK))
    assert any(card.test is not None and card.test.value == "1.75" for card in cards(results))
    assert text_of(2.3456, Unit.NUMBER) == "2.346"
    assert scale_of(Unit.NUMBER, [1.0, 2.0]).factor == 1.0
