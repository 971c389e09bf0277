"""Recording a table: nothing is trained twice, nothing is lost, and what is read is what was measured."""

import json
import math
import re
from itertools import islice

import pytest

from autopeft.app.planning import Plan
from autopeft.app.recording import record
from autopeft.cli.bench import command_text, shares_of
from autopeft.domain.errors import UserError
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.domain.results import TaskInfo
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import FailureReason, TrialStatus
from autopeft.evaluate.inspection import Inspection
from autopeft.search.filling import fill, value_at
from autopeft.store.recorded import read_table
from tests.fakes.handmade import handmade_layout, handmade_space
from tests.fakes.searches import toy_objectives

TASK = TaskInfo(
    kind="classification",
    labels=("secret", "other"),
    metric="accuracy",
    metrics=("accuracy",),
    rows={"train": 8, "validation": 4},
)
SPEC = SearchSpec.model_validate(
    {
        "data": {"train": "/home/somebody/data/mine/train.jsonl", "validation": "/home/somebody/data/mine/dev.jsonl"},
        "training": {"steps": 10, "batch_size": 4, "rungs": [0.5, 1.0]},
    }
)


def plan(spec, space=None):
    inspection = Inspection(handmade_layout(), TASK, "d" * 16, "m" * 16, ())
    resources = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0)
    return Plan(spec, inspection, toy_objectives(), space or handmade_space(), resources, ())


def recorded(path, configs, told=lambda training: None, spec=SPEC, **fake):
    evaluator = EvaluatorRef(
        target="tests.fakes.evaluators:build", arguments={"rungs": 2, "log": str(path.parent / "log"), **fake}
    )
    return record(spec, path, configs=configs, seeds=3, told=told, evaluator=evaluator, plan=plan)


def begun(path):
    return [line for line in (path.parent / "log").read_text().splitlines() if line.startswith("began")]


def numbers(table):
    """All that does not depend on the clock."""
    return {
        config: [
            one.model_dump(exclude={"wall_s", "cpu_s", "rungs"})
            | {"rungs": [(rung.step, rung.quality) for rung in one.rungs]}
            for one in trainings
        ]
        for config, trainings in table.trainings.items()
    }


def test_every_seed_and_every_rung_of_every_configuration_is_a_row_with_what_was_measured(tmp_path):
    path, heard = tmp_path / "table.parquet", []
    made = recorded(path, 4, heard.append)
    table = read_table(path)
    assert made.configs == 4
    assert [(one.config, one.seed) for one in heard] == [(config, seed) for config in range(4) for seed in range(3)]
    assert [one for trainings in table.trainings.values() for one in trainings] == heard
    for parameters, candidate in islice(fill(handmade_space(), 0), 4):
        config = next(key for key, value in table.trainings.items() if value[0].candidate == candidate)
        assert table.trainings[config][0].parameters == parameters
    one = table.trainings[1][0]
    rank = one.parameters["rank"]
    assert one.train_peak_bytes == 10_000_000 + 100_000 * rank
    assert [rung.step for rung in one.rungs] == [5, 10]
    assert one.rungs[0].quality["accuracy"] == pytest.approx(one.rungs[1].quality["accuracy"] / 2, abs=2e-6)
    assert 0 <= one.rungs[0].wall_s <= one.rungs[1].wall_s <= one.wall_s


@pytest.mark.parametrize("torn", [b"", b'{"config": 1, "se', b'{"config": 1, "seed": 2}'])
def test_a_killed_recording_goes_on_and_trains_nothing_twice(tmp_path, torn):
    whole, killed = tmp_path / "whole" / "table.parquet", tmp_path / "killed" / "table.parquet"
    recorded(whole, 3)

    def kill(training):
        if (training.config, training.seed) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded(killed, 3, kill)
    assert list(read_table(killed).trainings) == [0], "a partial table holds whole configurations"
    with killed.with_suffix(".journal.jsonl").open("ab") as file:
        file.write(torn)
    recorded(killed, 3)
    assert len(begun(killed)) == 9
    assert numbers(read_table(killed)) == numbers(read_table(whole))


def test_a_larger_table_begins_with_the_smaller_one(tmp_path):
    small, large = tmp_path / "small" / "table.parquet", tmp_path / "large" / "table.parquet"
    recorded(small, 2)
    recorded(large, 5)
    recorded(small, 5)
    assert len(begun(small)) == 15
    assert numbers(read_table(small)) == numbers(read_table(large))


@pytest.mark.parametrize("left", [None, 0, 1, 3])
def test_a_table_grows_without_its_journal_or_with_the_begin_of_one(tmp_path, left):
    path = tmp_path / "table.parquet"
    recorded(path, 2)
    before, journal = read_table(path), path.with_suffix(".journal.jsonl")
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    if left is None:
        journal.unlink()
    else:
        journal.write_text("".join(lines[:left]), encoding="utf-8")
    with pytest.raises(UserError, match="was begun with other seed"):
        recorded(path, 3, spec=SPEC.model_copy(update={"seed": 1}))
    recorded(path, 3)
    grown = read_table(path)
    assert len(begun(path)) == 9
    assert {config: grown.trainings[config] for config in (0, 1)} == before.trainings
    assert len(grown.trainings) == 3


def test_failed_trainings_are_rows_that_say_why(tmp_path):
    path = tmp_path / "table.parquet"
    recorded(path, 2, faults={"1": "oom"})
    table = read_table(path)
    assert {one.status for one in table.trainings[0]} == {TrialStatus.COMPLETE}
    assert {(one.status, one.reason) for one in table.trainings[1]} == {
        (TrialStatus.INFEASIBLE, FailureReason.OUT_OF_MEMORY)
    }


def test_another_recipe_does_not_go_on_with_the_table(tmp_path):
    path = tmp_path / "table.parquet"
    recorded(path, 1)
    other = SearchSpec.model_validate(SPEC.model_dump() | {"training": {"steps": 12, "rungs": [0.5, 1.0]}})
    with pytest.raises(UserError, match="other recipe"):
        recorded(path, 1, spec=other)


def test_a_table_holds_no_text_of_the_data_and_no_path_of_the_machine(tmp_path):
    path = tmp_path / "table.parquet"
    recorded(path, 1)
    said = json.dumps(read_table(path).facts.model_dump(mode="json"))
    assert "secret" not in said
    assert "somebody" not in said
    assert read_table(path).facts.data == "mine"
    shown = command_text(["/venv/bin/autopeft", "bench", "record", "--train", "/home/somebody/trec/train.jsonl"])
    assert shown == "autopeft bench record --train trec/train.jsonl"


def test_configurations_are_distinct_belong_to_the_space_and_fill_it():
    space = handmade_space()
    drawn = list(islice(fill(space, 3), 128))
    assert len({candidate.digest for _, candidate in drawn}) == 128
    assert all(space.resolve(values) == candidate for values, candidate in drawn)
    for parameter in space.parameters:
        if isinstance(parameter.domain, ChoiceDomain) and not parameter.when:
            counts = [sum(values[parameter.name] == one for values, _ in drawn) for one in parameter.domain.values]
            # Far more even than 128 independent draws: a power of two is balanced to within one point per cut.
            assert max(counts) - min(counts) <= 3, parameter.name


def test_places_are_spread_over_a_domain_s_scale():
    places = [index / 1000 for index in range(1000)]
    wide = FloatDomain(low=1e-4, high=1e-2, log=True)
    found = [value_at(wide, place) for place in places]
    assert sum(value < 1e-3 for value in found) == pytest.approx(500, abs=2)
    assert all(wide.low <= value <= wide.high and re.fullmatch(r"[\d.e-]{1,8}", repr(value)) for value in found)
    assert [value_at(IntDomain(low=2, high=5), place) for place in (0.0, 0.26, 0.51, 0.999)] == [2, 3, 4, 5]
    ranks = [value_at(IntDomain(low=1, high=64, log=True), place) for place in places]
    assert min(ranks) == 1
    assert max(ranks) == 64
    assert sum(rank < 8 for rank in ranks) / 1000 == pytest.approx(math.log(7.5 / 0.5) / math.log(64.5 / 0.5), abs=0.01)


def test_rungs_may_be_fractions():
    assert shares_of("1/9, 1/3,1") == [1 / 9, 1 / 3, 1.0]
    with pytest.raises(UserError, match="cannot be read"):
        shares_of("1/0,1")
