"""Each panel's record says what a slow count over the trials says."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from autopeft.dashboards.front import front_records
from autopeft.dashboards.header import header_record
from autopeft.dashboards.history import history_record
from autopeft.dashboards.importance import importance_record
from autopeft.dashboards.layers import layers_record
from autopeft.dashboards.numbers import scale_of, spans, text_of
from autopeft.dashboards.parallel import GAP, parallel_panel, parallel_record, parameter_column
from autopeft.dashboards.trials import measured_lines, trials_record

from autopeft.domain.objective import Direction, Unit
from autopeft.domain.results import Front, RunResults
from autopeft.domain.trial import TrialStatus
from tests.contract.run_samples import measurements_of
from tests.unit import dashboard_runs as runs

THREE = ("accuracy", "train_peak_bytes", "latency_s")


def dominated(results: RunResults, values: tuple[float, ...]) -> bool:
    """Whether any complete trial beats these values, compared one by one."""
    for one in results.trials:
        if one.values is None:
            continue
        better = [
            theirs > ours if objective.direction is Direction.MAXIMIZE else theirs < ours
            for objective, theirs, ours in zip(results.objectives, one.values, values, strict=True)
        ]
        equal = [theirs == ours for theirs, ours in zip(one.values, values, strict=True)]
        if any(better) and all(up or same for up, same in zip(better, equal, strict=True)):
            return True
    return False


@pytest.mark.parametrize("names", [THREE[:2], THREE, ("train_peak_bytes", "accuracy")])
def test_front_points_are_those_that_nothing_dominates(names: tuple[str, ...]) -> None:
    results = runs.results(names=names)
    complete = {one.trial.number: one.values for one in results.trials if one.values is not None}
    for record in front_records(results):
        assert record.y.name == "accuracy"
        assert {point.number for point in record.points} == set(complete)
        for point in record.points:
            assert point.on_front == (not dominated(results, complete[point.number]))


def test_one_view_per_objective_beside_quality_and_the_next_one_colours_it() -> None:
    first, second = front_records(runs.results(names=THREE))
    assert (first.x and first.x.name, first.third and first.third.name) == ("train_peak_bytes", "latency_s")
    assert (second.x and second.x.name, second.third and second.third.name) == ("latency_s", "train_peak_bytes")


def test_stairs_climb_from_the_smallest_to_the_best() -> None:
    (record,) = front_records(runs.results(80))
    assert len(record.stairs) > 2
    for (x, y), (next_x, next_y) in pairwise(record.stairs):
        assert x < next_x
        assert y < next_y
    assert record.stairs[0][0] == min(point.x for point in record.points)
    assert record.stairs[-1][1] == max(point.y for point in record.points)
    for point in record.points:
        assert max(y for x, y in record.stairs if x <= point.x) >= point.y


def test_one_objective_is_drawn_over_trial_numbers() -> None:
    (record,) = front_records(runs.results(names=("accuracy",)))
    assert record.x is None
    assert all(point.x == point.number for point in record.points)
    assert [y for _, y in record.stairs] == sorted({y for _, y in record.stairs})


def test_infeasible_trials_lie_where_they_measured_or_at_the_limit() -> None:
    results = runs.results(80)
    (record,) = front_records(results)
    by_number = {one.trial.number: one.trial for one in results.trials}
    assert {one.number for one in record.infeasible} == {
        number for number, trial in by_number.items() if trial.status is TrialStatus.INFEASIBLE
    }
    assert record.unplaced == 0
    kinds = set()
    for one in record.infeasible:
        measured, failure = by_number[one.number].measurements, by_number[one.number].failure
        if measured is not None and measured.train_peak is not None:
            kinds.add("measured")
            assert one.x == measured.train_peak.live_bytes
        elif failure is not None and failure.violation is not None:
            kinds.add("violation")
            assert one.x == pytest.approx(runs.LIMIT * (1 + failure.violation))
        else:
            kinds.add("unknown")
            assert (one.x, one.known) == (runs.LIMIT, False)
    assert kinds == {"measured", "violation", "unknown"}


def test_infeasible_trials_without_any_number_are_counted() -> None:
    results = runs.results(80, max_memory=None)
    (record,) = front_records(results)
    count = results.counts()[TrialStatus.INFEASIBLE]
    assert record.limit is None
    assert 0 < record.unplaced < count
    assert len(record.infeasible) + record.unplaced == count


def test_hover_names_the_trial_its_numbers_its_test_score_and_its_parameters() -> None:
    results = runs.results()
    (record,) = front_records(results)
    one = results.front.members[0]
    hover = next(point.hover for point in record.points if point.number == one.trial.number).split("\n")
    assert one.values is not None
    assert one.trial.test_quality is not None
    assert hover[:4] == [
        f"Trial {one.trial.number} · complete",
        f"Accuracy: {100 * one.values[0]:.1f} %",
        f"Train peak: {one.values[1] / 2**20:.1f} MiB",
        f"Test accuracy: {100 * one.trial.test_quality['accuracy']:.1f} %",
    ]
    assert {line.split(" = ")[0] for line in hover[4:]} == set(one.trial.parameters)


def test_header_counts_every_trial_once_and_recommends_front_points() -> None:
    results = runs.results()
    header = header_record(results)
    assert set(dict(header.counts)) == set(TrialStatus) - {TrialStatus.PENDING, TrialStatus.RUNNING}
    assert sum(dict(header.counts).values()) == len(results.trials)
    assert {card.number for card in header.cards} <= results.front.numbers
    assert {pick: card.number for card in header.cards for pick in card.picks} == {
        pick: results.front.pick(pick).trial.number for pick in ("knee", "most-accurate", "smallest")
    }
    assert header.cards[0].command == "autopeft export docs-demo --pick knee"
    for card in header.cards:
        assert card.test is not None
        assert card.test.note == "majority class 13.5 %"


def test_one_point_that_is_everything_has_one_card() -> None:
    header = header_record(runs.results(1))
    assert [card.picks for card in header.cards] == [("knee", "most-accurate", "smallest")]


@pytest.mark.parametrize(
    ("kinds", "count", "said"),
    [
        ([TrialStatus.COMPLETE], 0, "No trial has run yet"),
        ([TrialStatus.INFEASIBLE], 5, "Every trial was infeasible"),
        ([TrialStatus.RUNNING], 2, "2 are waiting or running"),
        ([TrialStatus.CRASHED], 3, "No trial completed"),
    ],
)
def test_headline_says_why_there_is_no_front(kinds: list[TrialStatus], count: int, said: str) -> None:
    header = header_record(runs.results(count, kinds=kinds))
    assert said in header.headline
    assert header.cards == ()


def test_history_has_a_step_per_ended_trial_and_never_falls() -> None:
    results = runs.results()
    record = history_record(results)
    assert record.trials == tuple(range(1, len(results.trials) + 1))
    assert all(before <= after for before, after in pairwise(record.hypervolume))
    assert all(before <= after for before, after in pairwise(record.seconds))


def test_importance_is_ordered_by_the_largest_share() -> None:
    record = importance_record(runs.results())
    assert record.parameters == ("learning_rate", "first_layer", "rank", "modules", "variant")
    assert dict(record.shares)["Train peak"] == (0.02, 0.38, 0.31, 0.24, 0.05)


def test_layers_hold_the_rank_of_the_candidate_and_nothing_elsewhere() -> None:
    results = runs.results()
    record = layers_record(results)
    assert len(record.strength) == len(results.front.members) > 1
    for one, row in zip(results.front.members, record.strength, strict=True):
        insertion = one.trial.candidate.insertions[0]
        for layer, value in zip(record.layers, row, strict=True):
            assert value == (insertion.settings["rank"] if layer in insertion.layers else None)


def test_parallel_axes_hold_every_complete_trial_within_their_range() -> None:
    results = runs.results()
    record = parallel_record(results)
    names = [column.name for column in record.columns]
    assert names[-2:] == ["Accuracy (%)", "Train peak (MiB)"]
    assert {"alpha_ratio", "dropout", "variant"} <= set(names)
    by_number = {one.trial.number: one for one in results.trials}
    for column in record.columns:
        assert len(column.positions) == len(record.numbers)
        assert all(column.low <= at <= column.high for at in column.positions)
    alpha = record.columns[names.index("alpha_ratio")]
    gap = next(at for at, text in alpha.ticks if text == GAP)
    for number, at in zip(record.numbers, alpha.positions, strict=True):
        assert (at == gap) == ("alpha_ratio" not in by_number[number].trial.parameters)
    quality = record.columns[-2]
    for number, at, colour in zip(record.numbers, quality.positions, record.colours, strict=True):
        values = by_number[number].values
        assert values is not None
        assert (at, colour) == (pytest.approx(100 * values[0]), values[0])


def test_parallel_lines_of_a_large_run_are_the_front_and_a_sample() -> None:
    results = runs.results(2500, kinds=[TrialStatus.COMPLETE])
    record = parallel_record(results)
    assert record.complete == 2500
    assert 500 < len(record.numbers) < 1200
    assert results.front.numbers <= set(record.numbers)
    assert list(record.numbers) == sorted(set(record.numbers))


def test_a_wide_number_gets_a_log_axis_a_ladder_gets_even_steps() -> None:
    rate = parameter_column("rate", [1e-5, 1e-3, 1e-2])
    assert rate.positions == pytest.approx((-5, -3, -2))
    assert [text for _, text in rate.ticks] == ["1e-05", "0.0001", "0.001", "0.01"]
    rank = parameter_column("rank", [2, 64, 8, None])
    assert rank.positions[:3] == (0.0, 2.0, 1.0)
    assert rank.positions[3] < 0
    assert [text for _, text in rank.ticks] == [GAP, "2", "8", "64"]
    mixed = parameter_column("mixed", [True, "auto", 3])
    assert sorted(mixed.positions) == [0.0, 1.0, 2.0]


def test_every_trial_has_a_row_with_a_cell_per_column() -> None:
    results = runs.results()
    record = trials_record(results)
    assert [row.number for row in record.rows] == list(range(len(results.trials)))
    for row, one in zip(record.rows, results.trials, strict=True):
        assert len(row.cells) == len(record.columns)
        assert row.status == one.trial.status.value
        assert bool(row.failure) == (one.trial.failure is not None)
        for column, (raw, text) in zip(record.columns, row.cells, strict=True):
            assert text
            assert raw is None or isinstance(raw, int | float) == column.numeric
    crashed = next(row for row in record.rows if row.status == "crashed")
    assert crashed.failure == f"exception: {runs.FAILURES[TrialStatus.CRASHED][1]}"
    assert "Traceback" in crashed.traceback


def test_numbers_have_units() -> None:
    assert text_of(0.6638, Unit.FRACTION) == "66.4 %"
    assert text_of(-0.25, Unit.CORRELATION) == "-0.250"
    assert text_of(312.46 * 2**20, Unit.BYTES) == "312.5 MiB"
    assert text_of(2**31, Unit.BYTES) == "2.00 GiB"
    assert text_of(0.00041, Unit.SECONDS) == "0.41 ms"
    assert text_of(750, Unit.SECONDS) == "12 min 30 s"
    assert text_of(73_728, Unit.COUNT) == "73.7 k"
    assert text_of(math.nan, Unit.COUNT) == text_of(None, Unit.BYTES) == "\u2013"
    assert scale_of(Unit.BYTES, [3 * 2**30, 2**30]).unit == "GiB"
    assert scale_of(Unit.COUNT, [10, 1e6]).log
    assert spans((0, 1, 2, 5, 7, 8)) == "0-2, 5, 7-8"


def with_methods(results: RunResults, methods: int) -> RunResults:
    """The same run, in which each trial takes one of so many methods and has a knob of that method alone."""
    trials = []
    for one in results.trials:
        method = f"m{one.trial.number % methods}"
        knob = {f"method.{method}.rank": one.trial.number, "rate": 0.1 * one.trial.number}
        trials.append(replace(one, trial=one.trial.model_copy(update={"parameters": {"method": method, **knob}})))
    return replace(results, trials=tuple(trials), front=Front.of(results.objectives, trials), importance={})


def test_an_axis_that_fewer_than_two_trials_have_is_left_out_and_the_caption_says_so() -> None:
    results = with_methods(runs.results(60, kinds=[TrialStatus.COMPLETE]), 40)
    record = parallel_record(results)
    names = [column.name for column in record.columns]
    assert names[:2] == ["method", "rate"], "what all trials have comes before the knobs of a few"
    # Numbers 0 to 19 come back as 40 to 59, so that 20 methods have two trials and 20 have one.
    assert record.rare == 20
    assert record.left_out == 2 + 20 - 12
    assert all(int(name.split(".")[1][1:]) < 20 for name in names[2:12])
    assert f"fewer than two of these trials have are left out, {record.rare} in all" in parallel_panel(results).caption
    assert "fewer than two" not in parallel_panel(runs.results(60)).caption


def test_an_axis_of_many_values_is_high_enough_to_read_them_and_has_room_beside_it() -> None:
    few, many = (
        parallel_panel(with_methods(runs.results(60, kinds=[TrialStatus.COMPLETE]), count)).views[0].figure
        for count in (4, 40)
    )
    assert (few.layout.height, few.layout.margin.l) == (420, 70)
    assert many.layout.height >= 12 * 40
    assert len(many.data[0].dimensions[0].ticktext) == 40


def test_columns_that_few_trials_fill_come_last_in_the_table() -> None:
    names = [column.name for column in trials_record(with_methods(runs.results(60), 40)).columns]
    first = next(index for index, name in enumerate(names) if name.startswith("method."))
    assert names[first - 2 : first] == ["method", "rate"]
    assert all(name.startswith("method.") for name in names[first:])


def test_a_label_on_a_phone_starts_with_trial_and_values_and_is_cut() -> None:
    results = runs.results(30)
    record = layers_record(results)
    assert len(record.titles) == len(record.labels)
    for title, one in zip(record.titles, results.front.members, strict=True):
        assert title.startswith(f"#{one.trial.number}  {100 * one.values[0]:.1f} %")
        assert len(title) <= 50


def test_a_trial_names_what_pruning_and_policy_measured() -> None:
    names = ("train_mean_bytes", "estimation_s", "pruning_s", "copied_bytes", "kept_parameters")
    full = measurements_of()
    found, plain = (dict(measured_lines(one)) for one in (full, full.model_copy(update=dict.fromkeys(names))))
    assert {name: found[name] for name in found if name not in plain} == {
        "Mean of the step peaks": text_of(float(full.train_mean_bytes or 0), Unit.BYTES),
        "of it the estimation": text_of(0.6, Unit.SECONDS),
        "Pruning step": text_of(0.2, Unit.SECONDS),
        "copied for it": text_of(4096.0, Unit.BYTES),
        "kept by the pruning": text_of(900.0, Unit.COUNT),
    }
