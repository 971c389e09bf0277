"""The panel of predicted memory, and what the page says of predictions and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from autopeft.dashboards.header import header_record
from autopeft.dashboards.memory import memory_figure, memory_panel, memory_record
from autopeft.dashboards.page import render
from autopeft.dashboards.trials import trials_record

from autopeft.cli.memory import elsewhere_text, memory_json, memory_text
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.results import Front, RunResults, ScoredTrial, score
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Failure, FailureReason, Trial, TrialStatus
from autopeft.export.tables import trial_rows
from tests.unit import dashboard_runs as runs

MIB = 2**20


def foretold(mib: float) -> PeakMemory:
    return PeakMemory(live_bytes=int(mib * MIB), source=MemorySource.PREDICTED)


def with_predictions(refused: int = 0, there: str | None = None) -> RunResults:
    """A run whose every trial was foretold 2 % too low, and the first one 10 % too high; then some refused ones."""
    results = runs.results()
    trials: list[ScoredTrial] = []
    for one in results.trials:
        measured = one.trial.measurements
        if measured is not None and measured.train_peak is not None:
            mib = measured.train_peak.live_bytes / MIB * (0.98 if any(t.values for t in trials) else 1.1)
            changed = {"foretold_peak": foretold(mib), "calibrated_peak_bytes": measured.train_peak.live_bytes}
            changed["elsewhere_peak"] = foretold(50 * mib)
            changed["steps"] = changed["planned_steps"] = 10
            trial = one.trial.model_copy(update={"measurements": measured.model_copy(update=changed)})
            one = replace(one, trial=trial)
        trials.append(one)
    failure = Failure(reason=FailureReason.PREDICTED_OVER_LIMIT, text="predicted to need more", violation=0.5)
    for number in range(len(trials), len(trials) + refused):
        trial = Trial(
            number=number,
            candidate=results.trials[0].trial.candidate.model_copy(update={"learning_rate": 1e-3 * (number + 1)}),
            parameters=results.trials[0].trial.parameters,
            seed=1,
            status=TrialStatus.INFEASIBLE,
            failure=failure,
            measurements=Measurements(foretold_peak=foretold(630)),
            finished_at=runs.BEGAN + 10,
        )
        trials.append(score(trial, results.objectives))
    spec = results.record.spec
    if there is not None:
        spec = SearchSpec.model_validate({**spec.model_dump(), "predict_for": there})
    record = results.record.model_copy(update={"spec": spec})
    return replace(results, record=record, trials=tuple(trials))


def test_without_predictions_there_is_no_panel_and_no_word() -> None:
    assert memory_panel(runs.results()) is None
    assert memory_text(runs.results()) == ""
    assert memory_json(runs.results()) == {"refused": 0, "errors": None, "predicted_for": None}


def test_the_panel_holds_every_trial_with_both_numbers_and_the_run_s_own_error() -> None:
    results = with_predictions(refused=3)
    record = memory_record(results)
    assert record is not None
    assert record.refused == 3
    assert record.errors.worst == pytest.approx(0.1, abs=1e-3)
    assert record.errors.median == pytest.approx(0.02, abs=1e-3)
    assert record.limit == runs.LIMIT
    shown = {
        number for trace in memory_figure(record).data if trace.customdata is not None for number in trace.customdata
    }
    assert shown == {one.number for one in (*record.trained, *record.broken_off)}
    page = render(results)
    assert 'id="figure-memory"' in page
    assert "within 2.00 % (median)" in page or "within 2.00% (median)" in page
    assert "3 candidates were predicted not to fit" in page


def test_refused_candidates_are_rows_of_the_table_and_no_progress() -> None:
    results = with_predictions(refused=3)
    assert len(results.hypervolume_history()) == len(with_predictions().hypervolume_history())
    table = trials_record(results)
    last = table.rows[-1]
    assert last.status == "infeasible"
    assert last.failure.startswith("predicted over limit: predicted to need more")
    assert ("Training peak foretold", "630.0 MiB (predicted)") in last.details
    facts = dict(header_record(results).facts)
    assert facts["Refused"].startswith("3 before training")
    assert memory_text(results).endswith("3 candidates refused before training")
    assert memory_text(with_predictions(refused=1)).endswith("1 candidate refused before training")
    rows = trial_rows(results)
    assert rows[-1]["foretold_peak_bytes"] == 630 * MIB
    assert rows[-1]["train_peak_bytes"] is None


def test_what_is_predicted_for_another_model_says_so_wherever_it_is_shown() -> None:
    results = with_predictions(there="model=big/one,seq=768,batch=4,dtype=bf16,device=l40s")
    objectives = (*results.objectives, *runs.objectives("predicted_peak_bytes"))
    trials = tuple(score(one.trial, objectives) for one in results.trials)
    results = replace(results, objectives=objectives, trials=trials, front=Front.of(objectives, trials))
    said = "big/one (4 x 768 tokens, bfloat16, l40s)"
    assert dict(header_record(results).facts)["Predicted peak"] == f"predicted and never measured, for {said}"
    assert elsewhere_text(results) == f"predicted_peak_bytes is predicted, not measured: for {said}."
    assert memory_json(results)["predicted_for"]["model"] == "big/one"
    page = render(results)
    assert "Predicted peak" in page
    assert said in page
