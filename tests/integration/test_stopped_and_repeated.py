"""A whole search with MO-ASHA and repetitions, as a person runs and reads it; nothing is trained."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd
import pytest
from typer.testing import CliRunner

from autopeft.app.searching import SearchResult, resume, search
from autopeft.cli.main import app
from autopeft.domain.budget import Budget
from autopeft.domain.ports import EvaluatorRef
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import CHECKPOINT, TrialStatus
from tests.fakes.run_app_search import plan


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    spec = SearchSpec.model_validate(
        {
            "name": "both",
            "space": "lora",
            "objectives": ("accuracy", "train_peak_bytes"),
            "sampler": "random",
            "early_stopping": "mo-asha",
            "repeat_share": 0.25,
            "training": {"rungs": [0.3, 0.6, 1.0], "batch_size": 4},
            "budget": Budget(trials=40),
            "resources": {"runner": "local"},
        }
    )
    reference = EvaluatorRef(target="tests.fakes.evaluators:build", arguments={"rungs": 3})
    return search(spec, tmp_path_factory.mktemp("runs"), evaluator=reference, plan=plan)


def test_the_rungs_shrink_by_a_third_and_what_was_promoted_trained_on(found: SearchResult) -> None:
    trials = [one.trial for one in found.results.trials]
    first = [trial for trial in trials if trial.seed == 0]
    reached = Counter(len(trial.measurements.rungs) for trial in first if trial.measurements)
    assert len(trials) == 40
    assert reached[1] > len(first) / 2
    assert reached[3] < len(first) / 4
    assert any(trial.attempt > 1 and trial.status is TrialStatus.COMPLETE for trial in first), "it waited at a rung"
    assert {trial.status for trial in trials} == {TrialStatus.COMPLETE, TrialStatus.STOPPED_EARLY}
    assert list(found.folder.rglob(CHECKPOINT)) == [], "none outlives the search"


def test_repetitions_keep_their_share_of_the_steps(found: SearchResult) -> None:
    trials = [one.trial for one in found.results.trials]
    again = [trial for trial in trials if trial.seed != 0]
    steps = {trial.number: trial.measurements.rungs[-1].step for trial in trials if trial.measurements}
    assert again
    assert all(trial.status is TrialStatus.COMPLETE for trial in again)
    assert sum(steps[trial.number] for trial in again) <= 0.25 * sum(steps.values())
    table = pd.read_parquet(found.folder / "trials.parquet").set_index("trial")
    assert set(table.repeats.dropna().index) == {trial.number for trial in again}


def test_status_front_and_report_say_it(found: SearchResult) -> None:
    where = ["both", "--runs", str(found.folder.parent)]
    status = CliRunner().invoke(app, ["status", *where])
    assert status.exit_code == 0, status.output
    assert "stopped early" in status.output
    assert "training samples" in status.output
    assert "stopped at 3/10, accuracy 0." in status.output
    assert "stopped_early" not in status.output
    told = json.loads(CliRunner().invoke(app, ["status", *where, "--json"]).output)
    stopped = [one.trial for one in found.results.trials if one.trial.status is TrialStatus.STOPPED_EARLY]
    assert set(told["stopped"]) == {str(trial.number) for trial in stopped}
    missing = sum(10 - trial.measurements.rungs[-1].step for trial in stopped if trial.measurements)
    assert told["saved"]["samples"] == missing * 4
    front = CliRunner().invoke(app, ["front", *where])
    assert "accuracy, posterior mean" in front.output
    assert "accuracy observed (times)" in front.output
    rows = json.loads(CliRunner().invoke(app, ["front", *where, "--json"]).output)
    assert {"accuracy", "accuracy_observed", "accuracy_observations", "accuracy_posterior_sd"} <= set(rows[0])
    assert not {row["trial"] for row in rows} & {trial.number for trial in stopped}
    report = (found.folder / "report.html").read_text(encoding="utf-8")
    assert "Stopped early" in report
    assert "posterior mean" in report


def test_a_finished_search_says_so_again(found: SearchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopeft.app.searching.make_plan", lambda spec, space_from=None: plan(spec))
    again = resume("both", found.folder.parent)
    assert again.why == found.why
    assert again.results.front == found.results.front
