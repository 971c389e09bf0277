"""A campaign keeps the adapters of its front, and only those."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autopeft.cluster.campaign import Campaign, Done
from autopeft.cluster.stopping import EarlyStopping
from autopeft.domain.measurements import Rung
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.stopping import Standing
from autopeft.domain.trial import CHECKPOINT, Outcome, TrialStatus
from tests.fakes.campaigns import begun, complete, crash, store_of
from tests.fakes.evaluators import known_measurements
from tests.fakes.searches import toy_campaign, toy_objectives
from tests.fakes.stores import MemoryRunStore


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


def stopped(task: EvaluationTask, accuracy: float) -> Outcome:
    """Stopped at half, with a checkpoint."""
    (adapter(task) / CHECKPOINT).write_bytes(b"state")
    measured = known_measurements(task).model_copy(
        update={"quality": {"accuracy": accuracy}, "rungs": (rung(accuracy, 5),), "adapter_bytes": None}
    )
    return Outcome(status=TrialStatus.STOPPED_EARLY, measurements=measured)


def rung(accuracy: float, step: int) -> Rung:
    return Rung(step=step, planned_steps=10, quality={"accuracy": accuracy}, train_loss=1.0, train_s=0.1)


def finished(task: EvaluationTask, half: float, full: float, like: EvaluationTask) -> Outcome:
    """Complete, with so much accuracy at half and at the end, and the memory of another."""
    measured = known_measurements(like).model_copy(
        update={"quality": {"accuracy": full}, "rungs": (rung(half, 5), rung(full, 10))}
    )
    return Outcome(status=TrialStatus.COMPLETE, measurements=measured)


def test_a_stopped_trial_keeps_its_checkpoint_until_a_point_of_the_front_was_better_when_it_was_stopped(
    tmp_path: Path,
) -> None:
    store = store_of("9")
    campaign = toy_campaign(store, tmp_path, workers=3)
    campaign.open()
    first, second, third = (begun(campaign) for _ in range(3))
    campaign.finish(first, stopped(first, 0.6))
    kept = Path(first.artefact_dir) / CHECKPOINT
    # Better in the end, and worse after as many steps: it may yet be caught up with.
    campaign.finish(second, finished(second, 0.5, 0.99, like=first))
    assert kept.is_file()
    campaign.close()
    again = toy_campaign(store, tmp_path, workers=3)
    again.open()
    assert kept.is_file(), "a new session keeps it too"
    third = begun(again)
    again.finish(third, finished(third, 0.7, 0.995, like=first))
    assert not kept.parent.exists()
    again.close()


@pytest.mark.parametrize("keep", ["front", "all"])
def test_no_checkpoint_outlives_the_run(tmp_path: Path, keep: str) -> None:
    campaign = toy_campaign(store_of("2"), tmp_path, keep_adapters=keep)
    campaign.open()
    first = begun(campaign)
    campaign.finish(first, stopped(first, 0.9))
    second = begun(campaign)
    assert (Path(first.artefact_dir) / CHECKPOINT).is_file()
    (adapter(second) / CHECKPOINT).write_bytes(b"state")
    campaign.finish(second, crash())
    assert isinstance(campaign.next(), Done)
    campaign.close()
    assert list((tmp_path / "artefacts").rglob(CHECKPOINT)) == []


def test_an_interrupted_trial_keeps_its_checkpoint_and_opening_deletes_halves_of_folders(tmp_path: Path) -> None:
    store = store_of("3")
    campaign = toy_campaign(store, tmp_path)
    campaign.open()
    task = begun(campaign)
    (adapter(task) / CHECKPOINT).write_bytes(b"state")
    half = tmp_path / "artefacts" / f".{Path(task.artefact_dir).name}.0a1b2c3d"
    half.mkdir()
    campaign.lost(task, "killed")
    campaign.close()
    again = toy_campaign(store, tmp_path)
    again.open()
    assert (Path(task.artefact_dir) / CHECKPOINT).is_file()
    assert not half.exists()
    assert begun(again).artefact_dir == task.artefact_dir
    again.close()


class Wants:
    """Goes on with everything; stopped trials are wanted again once so many trials are complete."""

    promotes = False

    def __init__(self, complete: int) -> None:
        self._complete = complete

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        return True

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        missing = self._complete - sum(one.complete for one in standings)
        return {one.number: missing + one.losses[-1] for one in standings if one.stopped}


def weighed(outcome: Outcome) -> Outcome:
    """With the memory at every rung."""
    measured = outcome.measurements
    assert measured is not None
    rungs = tuple(one.model_copy(update={"train_peak": measured.train_peak}) for one in measured.rungs)
    return outcome.model_copy(update={"measurements": measured.model_copy(update={"rungs": rungs})})


def wanting(store: MemoryRunStore, folder: Path, complete: int = 1) -> Campaign:
    return toy_campaign(store, folder, stopping=EarlyStopping(toy_objectives(), (0.5, 1.0), Wants(complete)))


def test_a_wanted_trial_trains_on_before_anything_new_and_costs_no_further_trial(tmp_path: Path) -> None:
    store = store_of("2")
    campaign = wanting(store, tmp_path)
    campaign.open()
    first = begun(campaign)
    campaign.finish(first, weighed(stopped(first, 0.6)))
    second = begun(campaign)
    assert second.number == 1
    campaign.finish(second, weighed(finished(second, 0.3, 0.5, like=second)))
    # Of two trials both ended; what is left of the first is no third.
    assert campaign.done() is None
    campaign.close()
    # A search that goes on decides as this one does.
    resumed = wanting(store, tmp_path)
    resumed.open()
    again = begun(resumed)
    assert (again.number, again.attempt, again.candidate) == (0, 2, first.candidate)
    assert again.artefact_dir == first.artefact_dir
    assert (Path(again.artefact_dir) / CHECKPOINT).is_file()
    resumed.finish(again, weighed(finished(again, 0.6, 0.9, like=again)))
    assert isinstance(resumed.next(), Done)
    assert [trial.status for trial in store.trials()] == [TrialStatus.COMPLETE] * 2
    assert 0 in resumed.front.numbers
    resumed.close()


def test_one_without_a_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    campaign = wanting(store_of("4"), tmp_path, complete=0)
    campaign.open()
    first = begun(campaign)
    outcome = weighed(stopped(first, 0.6))
    (Path(first.artefact_dir) / CHECKPOINT).unlink()
    campaign.finish(first, outcome)
    assert begun(campaign).number == 1
    campaign.close()


def test_so_many_checkpoints_are_kept_and_the_nearest_to_being_wanted(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("autopeft.cluster.campaign.MOST_CHECKPOINTS", 2)
    campaign = wanting(store_of("9"), tmp_path, complete=99)
    campaign.open()
    for accuracy in (0.6, 0.2, 0.4):
        task = begun(campaign)
        campaign.finish(task, weighed(stopped(task, accuracy)))
    left = sorted(int(path.parent.name[:4]) for path in (tmp_path / "artefacts").rglob(CHECKPOINT))
    assert left == [0, 2]
    campaign.close()
