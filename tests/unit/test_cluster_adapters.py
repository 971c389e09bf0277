"""A campaign keeps the adapters of its front, and only those."""

from __future__ import annotations

from pathlib import Path

from autopeft.domain.ports import EvaluationTask
from autopeft.domain.trial import Outcome, TrialStatus
from tests.fakes.campaigns import begun, complete, crash, store_of
from tests.fakes.evaluators import known_measurements
from tests.fakes.searches import toy_campaign


def adapter(task: EvaluationTask) -> Path:
    folder = Path(task.artefact_dir)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


def test_adapters_of_dominated_trials_are_deleted_and_those_of_running_ones_kept(tmp_path: Path) -> None:
    campaign = toy_campaign(store_of(), tmp_path, workers=3)
    campaign.open()
    tasks = [begun(campaign) for _ in range(3)]
    folders = [adapter(task) for task in tasks]
    assert folders[0].name == f"0000-{tasks[0].candidate.digest}"
    memory = known_measurements(tasks[0]).train_peak
    better = known_measurements(tasks[1]).model_copy(update={"quality": {"accuracy": 0.99}, "train_peak": memory})
    campaign.finish(tasks[0], complete(tasks[0], accuracy=0.5))
    assert folders[0].is_dir()
    campaign.finish(tasks[1], Outcome(status=TrialStatus.COMPLETE, measurements=better))
    assert [folder.is_dir() for folder in folders] == [False, True, True]
    campaign.finish(tasks[2], crash())
    assert [folder.is_dir() for folder in folders] == [False, True, False]
    campaign.close()


def test_all_adapters_are_kept_where_asked(tmp_path: Path) -> None:
    campaign = toy_campaign(store_of("4"), tmp_path, keep_adapters="all")
    campaign.open()
    folders = []
    while isinstance(task := campaign.next(), EvaluationTask):
        folders.append(adapter(task))
        campaign.finish(task, complete(task, accuracy=0.1))
    assert all(folder.is_dir() for folder in folders)
    campaign.close()


def test_opening_deletes_dominated_adapters_that_a_killed_session_left_and_nothing_else(tmp_path: Path) -> None:
    store = store_of("6")
    campaign = toy_campaign(store, tmp_path, keep_adapters="all")
    campaign.open()
    while isinstance(task := campaign.next(), EvaluationTask):
        adapter(task)
        campaign.finish(task, complete(task))
    campaign.close()
    foreign = tmp_path / "artefacts" / "notes"
    foreign.mkdir()
    again = toy_campaign(store, tmp_path)
    again.open()
    left = {int(folder.name[:4]) for folder in (tmp_path / "artefacts").iterdir() if folder != foreign}
    assert left == again.front.numbers
    assert foreign.is_dir()
    assert len(left) < 6
    again.close()
