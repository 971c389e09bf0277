"""A campaign spends a share of its budget on training promising candidates again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autopeft.cluster.campaign import Campaign
from autopeft.cluster.stopping import EarlyStopping
from autopeft.domain.measurements import MemorySource, PeakMemory, Rung
from autopeft.domain.ports import EvaluationTask
from autopeft.domain.repetition import believed
from autopeft.domain.results import Front, score
from autopeft.domain.stopping import Standing
from autopeft.domain.trial import Outcome, TrialStatus
from autopeft.search.repeating import RepeatingSampler
from tests.fakes.campaigns import complete, drive
from tests.fakes.searches import ToySampler, toy_campaign, toy_objectives, toy_record
from tests.fakes.stores import MemoryRunStore


def repeating_store() -> MemoryRunStore:
    record = toy_record(budget="12")
    return MemoryRunStore(record.model_copy(update={"spec": record.spec.model_copy(update={"repeat_share": 0.4})}))


def repeating(store: MemoryRunStore, folder: Path) -> Campaign:
    sampler = RepeatingSampler(ToySampler(), toy_objectives(), 0.4, 0)
    return toy_campaign(
        store, folder, sampler=sampler, stopping=EarlyStopping(toy_objectives(), (0.5, 1.0), StopsAll())
    )


class StopsAll:
    promotes = False

    def goes_on(self, trial: Standing, others: Sequence[Standing]) -> bool:
        return False

    def behind(self, standings: Sequence[Standing]) -> dict[int, float]:
        return {}


def a_rung() -> Rung:
    peak = PeakMemory(live_bytes=100, source=MemorySource.TRACKED)
    return Rung(step=5, planned_steps=10, quality={"accuracy": 0.1}, train_loss=1.0, train_s=0.1, train_peak=peak)


def test_a_repetition_is_a_trial_with_its_own_seed_is_never_stopped_and_moves_the_front(tmp_path: Path) -> None:
    store = repeating_store()
    campaign = repeating(store, tmp_path)
    campaign.open()
    repeated, folders = None, {}
    while isinstance(task := campaign.next(), EvaluationTask):
        folder = Path(task.artefact_dir)
        folder.mkdir(parents=True)
        folders[task.number] = folder
        if task.seed != 0:
            repeated = repeated or task
            assert campaign.rung(task.number, task.attempt, a_rung()), "what is known of those that did well is no mean"
        elif task.number:
            assert not campaign.rung(task.number, task.attempt, a_rung())
        campaign.finish(task, complete(task, accuracy=0.1 if task.seed else 0.5 + 0.1 * (task.number == 0)))
    assert repeated is not None
    trials = store.trials()
    mine = [trial for trial in trials if trial.digest == repeated.candidate.digest]
    assert [trial.status for trial in mine] == [TrialStatus.COMPLETE] * len(mine)
    assert len({trial.seed for trial in mine}) == len(mine) > 1
    scored = [score(trial, toy_objectives()) for trial in trials]
    assert campaign.front == Front.of(toy_objectives(), believed(toy_objectives(), scored).points)
    assert campaign.front != Front.of(toy_objectives(), scored)
    # Until the end any of them might have come to the front; then only its adapters stay.
    assert {number for number, folder in folders.items() if folder.exists()} == campaign.front.numbers
    campaign.close()


def test_a_search_with_repetitions_goes_on_as_an_undisturbed_one(tmp_path: Path) -> None:
    def ended(task: EvaluationTask) -> Outcome:
        return complete(
            task, accuracy=0.5 + 0.01 * (task.seed % 7) + 0.002 * task.candidate.insertions[0].settings["rank"]
        )

    whole, broken = repeating_store(), repeating_store()
    undisturbed = repeating(whole, tmp_path / "a")
    undisturbed.open()
    drive(undisturbed, ended)
    undisturbed.close()
    for _ in range(12):
        campaign = repeating(broken, tmp_path / "b")
        campaign.open()
        if isinstance(task := campaign.next(), EvaluationTask):
            campaign.finish(task, ended(task))
        campaign.close()
    assert [(one.digest, one.seed) for one in broken.trials()] == [(one.digest, one.seed) for one in whole.trials()]
    assert any(one.seed for one in whole.trials())
