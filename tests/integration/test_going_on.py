"""Going on with a run: only with its own database, space and name, and never at the price of what is there."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from autopeft.app.folder import RunFolder
from autopeft.app.objectives import load_objectives
from autopeft.app.planning import Plan, make_plan
from autopeft.app.results import load_results, opened, write_report
from autopeft.app.searching import resume, search
from autopeft.domain.budget import Budget
from autopeft.domain.errors import UserError
from autopeft.domain.events import Notice, RunOpened
from autopeft.domain.ports import EvaluatorRef, Resources
from autopeft.domain.spec import ResourceSpec, SearchSpec
from autopeft.evaluate.inspection import Inspection
from autopeft.evaluate.methods import METHODS
from autopeft.spaces import bind, load_space
from tests.fakes.evaluators import FakeEvaluator
from tests.fakes.searches import toy_layout, toy_record

SPACE = """
name: mine
summary: For a test.
parameters:
  rank: {kind: int, low: 1, high: 8}
  layers: {kind: layers, modes: top-k}
candidate:
  insertions:
    - method: lora
      layers: $layers
      modules: all
      settings: {rank: $rank, alpha_ratio: 1.0, dropout: 0.0}
  learning_rate: 1.0e-3
"""


class Saving(FakeEvaluator):
    """Writes the two files that an export needs, and fails at test scores where asked to."""

    def __init__(self, refuse):
        super().__init__({}, 0.0, 0, None)
        self.refuse = refuse

    def evaluate(self, tasks):
        outcomes = yield from super().evaluate(tasks)
        for task in tasks:
            (Path(task.artefact_dir) / "adapter_config.json").write_text('{"base_model_name_or_path": "toy"}')
        return outcomes

    def score_test(self, artefact_dir):
        if self.refuse:
            raise RuntimeError("the test set is cursed")
        return super().score_test(artefact_dir)


def build(refuse=False):
    return Saving(refuse)


def plan_of(spec, space_from=None):
    """A plan of a toy model, without looking at a real one."""
    task = toy_record().task.model_copy(update={"rows": {"train": 10, "validation": 10, "test": 10}})
    inspection = Inspection(toy_layout(), task, "0" * 16, "0" * 16, ())
    return Plan(
        spec=spec,
        inspection=inspection,
        objectives=load_objectives(("accuracy", "train_peak_bytes")),
        space=bind(load_space(str(space_from or spec.space)), inspection.layout, METHODS),
        resources=Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0),
        notices=(),
    )


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "mine.yaml").write_text(SPACE)
    return SearchSpec(
        name="toy",
        space=str(tmp_path / "mine.yaml"),
        budget=Budget(trials=4),
        resources=ResourceSpec(runner="local"),
    )


def run(spec, tmp_path, refuse=False, **more):
    events = []
    found = search(
        spec,
        tmp_path / "runs",
        evaluator=EvaluatorRef(target="tests.integration.test_going_on:build", arguments={"refuse": refuse}),
        plan=plan_of,
        on_event=events.append,
        **more,
    )
    return found, events


def test_a_run_in_another_database_is_not_begun_again_in_the_folder(spec, tmp_path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    run(spec, tmp_path, store_url=url)
    before = (tmp_path / "runs" / "toy" / "front.csv").read_text()
    with pytest.raises(UserError, match=r"elsewhere\.db.*--store"):
        run(spec, tmp_path)
    with pytest.raises(UserError, match=r"elsewhere\.db.*--store"), opened("toy", tmp_path / "runs"):
        pass
    assert not (tmp_path / "runs" / "toy" / "trials.db").exists()
    assert (tmp_path / "runs" / "toy" / "front.csv").read_text() == before
    _, events = run(spec, tmp_path, store_url=url)
    assert [event.done for event in events if isinstance(event, RunOpened)] == [4]


def test_a_run_in_its_own_folder_is_not_begun_again_elsewhere(spec, tmp_path):
    run(spec, tmp_path)
    with pytest.raises(UserError, match="in its own folder"):
        run(spec, tmp_path, store_url=f"sqlite:///{tmp_path / 'elsewhere.db'}")


def test_results_are_written_though_the_test_set_cannot_be_scored(spec, tmp_path):
    found, events = run(spec, tmp_path, refuse=True)
    folder = tmp_path / "runs" / "toy"
    assert {path.name for path in folder.iterdir()} >= {"front.csv", "trials.parquet", "report.html", "best"}
    assert any("cursed" in event.text for event in events if isinstance(event, Notice))
    assert all(one.trial.test_quality is None for one in found.results.front.members)
    again, _ = run(spec, tmp_path)
    assert all(one.trial.test_quality == {"accuracy": 0.5} for one in again.results.front.members)


def test_results_are_written_though_an_adapter_was_deleted(spec, tmp_path):
    run(spec, tmp_path)
    shutil.rmtree(tmp_path / "runs" / "toy" / "artefacts")
    _, events = run(spec, tmp_path)
    assert any("autopeft train" in event.text for event in events if isinstance(event, Notice))


def test_a_run_killed_while_its_folder_was_made_is_begun_by_the_same_command(spec, tmp_path):
    folder = tmp_path / "runs" / "toy"
    (folder / "artefacts").mkdir(parents=True)
    (folder / "space.yaml").write_text("half of")
    found, _ = run(spec, tmp_path)
    assert len(found.results.trials) == 4


def test_a_renamed_folder_is_noticed(spec, tmp_path):
    run(spec, tmp_path)
    (tmp_path / "runs" / "toy").rename(tmp_path / "runs" / "good")
    with pytest.raises(UserError, match="holds the run 'toy'"):
        resume("good", tmp_path / "runs")


def test_the_run_s_own_copy_of_its_space_counts_when_it_is_resumed(spec, tmp_path, monkeypatch):
    run(spec, tmp_path)
    (tmp_path / "mine.yaml").unlink()
    monkeypatch.setattr("autopeft.app.searching.make_plan", plan_of)
    found = resume("toy", tmp_path / "runs")
    assert len(found.results.trials) == 4


def test_a_changed_space_is_noticed_by_the_same_command(spec, tmp_path):
    run(spec, tmp_path)
    (tmp_path / "mine.yaml").write_text(SPACE.replace("high: 8", "high: 4"))
    with pytest.raises(UserError, match="was changed"):
        run(spec, tmp_path)


def test_another_budget_is_kept_and_saved(spec, tmp_path):
    run(spec, tmp_path)
    found, _ = run(spec.model_copy(update={"budget": Budget(trials=6)}), tmp_path)
    assert len(found.results.trials) == 6
    assert RunFolder(tmp_path / "runs" / "toy").load_spec().budget == Budget(trials=6)


def test_a_report_written_again_is_the_same(spec, tmp_path):
    run(spec.model_copy(update={"budget": Budget(trials=12)}), tmp_path)
    first = (tmp_path / "runs" / "toy" / "report.html").read_text()
    with opened("toy", tmp_path / "runs") as found:
        write_report(load_results(found, with_importance=True), tmp_path / "again.html")
    assert first == (tmp_path / "again.html").read_text()


def test_planning_takes_the_copy_of_the_space(spec, tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text(SPACE.replace("name: mine", "name: copied"))
    assert partial(plan_of, space_from=copy)(spec).space.name == "copied"
    assert make_plan(SearchSpec(space="nowhere.yaml"), space_from=copy).space.name == "copied"
