"""front.csv and trials.parquet."""

import json
import math

import pandas as pd
import pytest

from autopeft.domain.errors import UserError
from autopeft.domain.results import TaskInfo
from autopeft.domain.trial import TrialStatus
from autopeft.export.tables import front_rows, parameter_names, trial_rows, write_front, write_trials
from tests.contract.run_samples import TASK, results_of, trial_of


def test_front_csv_has_one_row_per_point_and_the_promised_columns(tmp_path):
    results = results_of()
    table = pd.read_csv(write_front(results, tmp_path / "front.csv"))
    parameters = ["variant", "rank", "learning_rate", "use_bias"]
    assert list(table.columns) == ["trial", "accuracy", "train_peak_bytes", "test_score", *parameters]
    assert list(table["trial"]) == [0, 1, 2]
    assert list(table["accuracy"]) == [0.6, 0.7, 0.75]
    assert list(table["train_peak_bytes"]) == [1000, 1100, 9000]
    assert list(table["test_score"]) == [0.58, 0.69, 0.71]
    for row, one in zip(table.to_dict("records"), results.front.members, strict=True):
        assert {name: row[name] for name in parameters} == one.trial.parameters


def test_the_test_score_is_the_task_s_metric(tmp_path):
    task = TaskInfo.model_validate({**TASK.model_dump(), "metric": "f1"})
    table = pd.read_csv(write_front(results_of(task=task), tmp_path / "front.csv"))
    assert list(table["test_score"]) == [0.5, 0.6, 0.7]


def test_inactive_parameters_and_missing_scores_are_empty_fields(tmp_path):
    trials = [
        trial_of(0, 0.6, 1000, parameters={"kind": "a", "depth": 3, "rate": 0.1}),
        trial_of(1, 0.7, 2000, parameters={"kind": "b", "width": 8, "rate": 0.2}),
    ]
    results = results_of(trials)
    text = write_front(results, tmp_path / "front.csv").read_text()
    assert text.splitlines() == [
        "trial,accuracy,train_peak_bytes,test_score,kind,width,depth,rate",
        "0,0.6,1000.0,,a,,3,0.1",
        "1,0.7,2000.0,,b,8,,0.2",
    ]


def test_the_space_s_order_of_parameters_is_kept_where_it_is_given(tmp_path):
    results = results_of([trial_of(0, parameters={"rate": 0.1})])
    assert parameter_names(results, ("kind", "depth", "rate")) == ["kind", "depth", "rate"]
    table = pd.read_csv(write_front(results, tmp_path / "front.csv", ("kind", "depth", "rate")))
    assert list(table.columns)[4:] == ["kind", "depth", "rate"]
    assert table["kind"].isna().all()


def test_an_empty_front_is_a_header(tmp_path):
    results = results_of([])
    assert front_rows(results) == []
    assert write_front(results, tmp_path / "front.csv").read_text() == "trial,accuracy,train_peak_bytes,test_score\n"
    assert len(pd.read_parquet(write_trials(results, tmp_path / "trials.parquet"))) == 0


def test_a_parameter_called_like_a_column_does_not_hide_it(tmp_path):
    results = results_of([trial_of(0, parameters={"trial": 9, "accuracy": 3, "status": "x", "rank": 4})])
    row = front_rows(results)[0]
    assert (row["trial"], row["parameter.trial"], row["accuracy"], row["parameter.accuracy"]) == (0, 9, 0.75, 3)
    table = pd.read_parquet(write_trials(results, tmp_path / "trials.parquet"))
    assert (table["status"][0], table["parameter.status"][0], table["rank"][0]) == ("complete", "x", 4)


def test_texts_with_commas_quotes_and_line_ends_come_back(tmp_path):
    text = 'a,"b"\nc;é'
    results = results_of([trial_of(0, parameters={"kind": text})])
    assert pd.read_csv(write_front(results, tmp_path / "front.csv"))["kind"][0] == text


def test_trials_parquet_has_every_trial_with_its_failure(tmp_path):
    results = results_of()
    table = pd.read_parquet(write_trials(results, tmp_path / "trials.parquet"))
    assert list(table.columns)[:5] == ["trial", "status", "digest", "accuracy", "train_peak_bytes"]
    assert list(table["trial"]) == list(range(6))
    assert list(table["status"]) == ["complete"] * 4 + ["infeasible", "crashed"]
    assert list(table["digest"]) == [one.trial.digest for one in results.trials]
    assert table["failure"][4] == "out_of_memory"
    assert table["failure_text"][5] == "ValueError: no"
    assert table["failure"][:4].isna().all()
    assert table["accuracy"][4:].isna().all()
    assert list(table["seconds"]) == [3.0] * 6
    assert table["trainable_parameters"].dtype == "Int64"
    assert table["trainable_parameters"][0] == 128
    assert table["rank"].dtype == "Int64", "whole numbers stay whole beside missing ones"
    assert pd.isna(table["rank"][5])
    assert table["use_bias"].dtype == "boolean"
    assert table["test_accuracy"][2] == 0.71
    assert json.loads(table["candidate"][0]) == results.trials[0].trial.candidate.model_dump(mode="json")


def test_a_parameter_with_values_of_several_kinds_becomes_text(tmp_path):
    trials = [trial_of(0, parameters={"depth": "all"}), trial_of(1, parameters={"depth": 3})]
    table = pd.read_parquet(write_trials(results_of(trials), tmp_path / "trials.parquet"))
    assert list(table["depth"]) == ["all", "3"]


def test_rows_are_json_whatever_was_measured():
    trial = trial_of(0, math.nan, test_quality={"accuracy": math.inf})
    results = results_of([trial, trial_of(1, 0.5, status=TrialStatus.INVALID)])
    json.dumps([front_rows(results), trial_rows(results)], allow_nan=False)
    assert trial_rows(results)[0]["accuracy"] is None
    assert trial_rows(results)[1]["validation_accuracy"] == 0.5
    assert trial_rows(results)[1]["accuracy"] is None, "only complete trials have objectives"


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = write_front(results_of(), tmp_path / "front.csv")
    before = path.read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda source, target: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match="disk is full"):
        write_front(results_of([]), path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["front.csv"]


def test_every_number_that_was_measured_has_a_column():
    measured = trial_of(0).measurements
    row, failed = trial_rows(results_of([trial_of(0), trial_of(1, measurements=None)]))
    for name, field in type(measured).model_fields.items():
        if field.annotation in (int | None, float | None) and name != "device_taken_bytes":
            assert row[name] == getattr(measured, name), name
            assert row[name] is not None, name
            assert failed[name] is None, name
