"""What a person is told of trials that were stopped early: where, how good, and what it saved."""

import io

import pytest
from autopeft.dashboards.front import front_records
from autopeft.dashboards.front_figure import front_figure
from autopeft.dashboards.header import header_record
from autopeft.dashboards.trials import trials_record
from rich.console import Console

from autopeft.cli.progress import LiveProgress, PlainProgress
from autopeft.domain.budget import Budget, Spent
from autopeft.domain.events import RunOpened, TrialEnded
from autopeft.domain.fidelity import saved_by_stopping, share_text, stop_of
from autopeft.domain.measurements import Measurements, Rung
from autopeft.domain.results import Front
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import TrialStatus
from autopeft.export.tables import trial_rows
from tests.fakes.searches import toy_record
from tests.unit import dashboard_runs as runs
from tests.unit.test_progress import trial

SHARES = (1 / 9, 1 / 3, 1.0)


def rung(step, planned, accuracy=0.41):
    return Rung(step=step, planned_steps=planned, quality={"accuracy": accuracy}, train_loss=1.0, train_s=1.0)


def stopped(number, step=27, planned=80):
    measured = Measurements(
        quality={"accuracy": 0.41}, rungs=(rung(9, 80, 0.2), rung(step, planned)), steps=step, planned_steps=planned
    )
    return trial(number, TrialStatus.STOPPED_EARLY).model_copy(update={"measurements": measured})


@pytest.mark.parametrize(
    ("step", "planned", "text"),
    [(9, 80, "1/9"), (27, 80, "1/3"), (1, 3, "1/9"), (80, 80, "1"), (36, 80, "45 %")],
)
def test_a_rung_is_told_as_the_share_that_was_asked_for(step, planned, text):
    assert share_text(rung(step, planned), SHARES) == text
    assert share_text(rung(10, 100), (0.1, 1.0)) == "1/10"
    assert share_text(rung(31, 100), (0.3141592, 1.0)) == "31 %", "no fraction that a person would write"


def test_only_a_stopped_trial_has_a_stop():
    assert stop_of(trial(0), SHARES) is None
    stop = stop_of(stopped(1), SHARES)
    assert stop is not None
    assert (stop.share, stop.fidelity, stop.quality) == ("1/3", 27 / 80, {"accuracy": 0.41})


def test_what_was_saved_is_what_was_planned_and_not_done():
    record = runs.record(("accuracy", "train_peak_bytes"))
    spec = SearchSpec.model_validate({"training": {"batch_size": 8, "gradient_accumulation": 2}})
    record = record.model_copy(update={"spec": spec})
    whole = trial(0).model_copy(update={"measurements": Measurements(steps=80, planned_steps=80)})
    saved = saved_by_stopping(record, [whole, stopped(1), stopped(2, step=9), trial(3, TrialStatus.CRASHED)])
    assert saved is not None
    assert (saved.trials, saved.steps) == (2, 53 + 71)
    assert saved.samples == (53 + 71) * 8 * 2
    assert saved.share == pytest.approx((53 + 71) / 240)
    assert saved_by_stopping(record, [whole]) is None


@pytest.mark.parametrize("kind", [PlainProgress, LiveProgress])
def test_progress_says_at_which_rung_a_trial_was_stopped_and_how_good_it_was(kind):
    screen = io.StringIO()
    record = toy_record().model_copy(update={"spec": SearchSpec(name="toy", early_stopping=True)})
    with kind(Console(file=screen, width=200)) as progress:
        progress(RunOpened(record, "runs/toy", Budget(trials=5), Spent(), False, 0, 0, 1))
        progress(TrialEnded(stopped(4), None, Front((), ()), Spent(trials=1)))
    assert "trial 4 stopped at 1/3, accuracy 0.410" in screen.getvalue()
    assert "stopped_early" not in screen.getvalue()


def test_the_report_draws_stopped_trials_apart_and_never_on_the_front():
    results = runs.results(60)
    numbers = {one.trial.number for one in results.trials if one.trial.status is TrialStatus.STOPPED_EARLY}
    (record,) = front_records(results)
    assert numbers
    assert {one.number for one in record.stopped} == numbers
    assert not numbers & {point.number for point in record.points}
    traces = [trace for trace in front_figure(record).data if trace.name == "Stopped early"]
    assert len(traces) == 1
    assert set(traces[0].customdata) == numbers
    assert "stopped at 1/2" in record.stopped[0].hover
    assert "Accuracy there:" in record.stopped[0].hover
    low, high = front_figure(record).layout.yaxis.range
    assert all(low <= 100 * one.y <= high for one in record.stopped), "all are in sight"


def test_tables_say_where_a_trial_was_stopped_and_call_its_rung_no_result():
    results = runs.results(60)
    table = trials_record(results)
    rows = [row for row in table.rows if row.status == "stopped_early"]
    assert rows
    for row in rows:
        measured = results.trials[row.number].trial.measurements
        assert row.cells[1][1] == f"stopped at 1/2, accuracy {100 * measured.quality['accuracy']:.1f} %"
        assert row.cells[2][0] is None
        assert row.cells[3][0] == measured.train_peak.live_bytes
    facts = dict(header_record(results).facts)
    assert facts["Saved by stopping early"].endswith(f"{len(rows)} trials stopped")
    exported = {row["trial"]: row for row in trial_rows(results)}
    assert all(exported[row.number]["fidelity"] == 0.5 for row in rows)
