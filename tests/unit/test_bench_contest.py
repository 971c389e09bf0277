"""`autopeft bench samplers`: from a Parquet file to a table and a page."""

import json
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from autopeft.app.contest import contest
from autopeft.cli.main import app
from autopeft.domain.errors import UserError
from autopeft.search.replay import Truth, start_from
from autopeft.store.recorded import write_table
from dashboards.contest import contest_record, render
from tests.fakes.recorded import made_up_table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "made-up.parquet"
    write_table(path, made_up_table(20))
    return path


def test_the_command_says_how_long_each_search_took(table, tmp_path):
    figure = tmp_path / "figure.html"
    arguments = [
        "bench",
        "samplers",
        str(table),
        "--samplers",
        "random,tpe",
        "--seeds",
        "3",
        "--early-stopping",
        "front,mo-asha",
    ]
    told = CliRunner().invoke(app, [*arguments, "--figure", str(figure), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    assert list(found["searches"]) == [
        f"{name}{ending}" for name in ("random", "tpe") for ending in ("", " + front", " + mo-asha")
    ]
    expected = contest(table, ["random"], seeds=3)
    median = expected.seconds_to("random", 0.95)
    assert found["searches"]["random"]["seconds"]["0.95"] == {
        "median": round(median.value, 3),
        "low": round(median.low, 3),
        "high": round(median.high, 3),
    }
    assert "random + mo-asha" in figure.read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["bench", "samplers", str(table), "--samplers", "random", "--seeds", "2"])
    assert shown.exit_code == 0, shown.output
    assert "s to 95%" in shown.output


def test_a_mark_that_half_of_the_seeds_miss_is_told_without_a_band(table, tmp_path):
    figure = tmp_path / "figure.html"
    asked = ["bench", "samplers", str(table), "--samplers", "random", "--seeds", "2", "--trials", "2"]
    shown = CliRunner().invoke(app, [*asked, "--figure", str(figure)])
    assert shown.exit_code == 0, shown.output
    assert "1 simulated worker;" in shown.output
    assert "(-" not in shown.output
    assert "not reached (" not in figure.read_text(encoding="utf-8")


def test_more_workers_take_less_time(table):
    one, four = (contest(table, ["random"], seeds=3, workers=workers, until=2.0) for workers in (1, 4))
    ends = [[replay.moments[-1].seconds for replay in found.replays["random"]] for found in (one, four)]
    assert all(long / 4 <= short <= long / 4 + 8 for long, short in zip(*ends, strict=True))


def test_curves_begin_and_end_with_what_was_reached(table):
    found = contest(table, ["random"], seeds=3)
    record = contest_record(found)
    (curve,) = record.curves
    final = sum(one.moments[-1].share for one in found.replays["random"]) / 3
    assert curve[-1].value == pytest.approx(final)
    assert all(a.value <= b.value and a.low <= a.value <= a.high for a, b in pairwise(curve))
    assert "<script" in render(found)


def test_what_is_no_table_and_who_is_no_sampler_are_said(table, tmp_path):
    with pytest.raises(UserError, match="nothing is called 'best'"):
        contest(table, ["best"])
    wrong = tmp_path / "wrong.parquet"
    wrong.write_text("no table")
    with pytest.raises(UserError, match="cannot be read"):
        contest(wrong, ["random"])
    small = tmp_path / "small.parquet"
    write_table(small, made_up_table(1))
    with pytest.raises(UserError, match="1 of its 1 configurations completed"):
        contest(small, ["random"])


def test_a_warm_start_from_the_very_table_saves_and_a_shuffled_one_is_told_apart(table, tmp_path):
    arguments = ["bench", "samplers", str(table), "--samplers", "random", "--seeds", "3", "--warm-start"]
    told = CliRunner().invoke(app, [*arguments, str(table)])
    assert told.exit_code == 0, told.output
    assert "random + warm start" in told.output
    found = contest(table, ["random"], seeds=3, warm_start=str(table))
    cold, warm = (found.trials_to(name, 0.95) for name in ("random", "random + warm start"))
    assert warm < cold
    assert f"random + warm start saves {cold - warm:g} trials to 95 %" in told.output
    shuffled = contest(table, ["random"], seeds=3, warm_start="shuffled")
    assert list(shuffled.replays) == ["random", "random + shuffled start"]
    with pytest.raises(UserError, match="cannot be read"):
        contest(table, ["random"], warm_start=str(tmp_path / "none.parquet"))


def test_shuffling_deals_out_the_same_qualities_and_leaves_memory(table):
    truth = Truth(made_up_table(20))
    (plain,), (dealt,) = (start_from(truth, truth, 1, shuffled=shuffled).earlier for shuffled in (False, True))
    values = [
        [[one.values[name] for one in run.trials] for name in ("accuracy", "train_peak_bytes")]
        for run in (plain, dealt)
    ]
    assert values[0][0] != values[1][0]
    assert sorted(values[0][0]) == sorted(values[1][0])
    assert values[0][1] == values[1][1]
    start = start_from(truth, truth, 1, trials=12)
    assert start.most == 4
    assert len({point.candidate.digest for point in start.points}) == len(start.points)
    other = Truth(made_up_table(6))
    assert len(start_from(truth, other, 0).earlier[0].trials) == 6
