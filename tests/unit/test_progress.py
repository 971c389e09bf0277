"""The progress of a search says what happened, what is left and how long it takes."""

import io

import pytest
from rich.console import Console

from autopeft.app.objectives import load_objectives
from autopeft.cli.progress import LiveProgress, PlainProgress
from autopeft.cli.tables import candidate_text
from autopeft.domain.budget import Budget, Spent
from autopeft.domain.candidate import Candidate, Insertion, Policy
from autopeft.domain.events import Notice, RungReached, RunOpened, TrialEnded, TrialStarted, TrialTakenUp
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory, Rung, TakenUp
from autopeft.domain.results import Front, score
from autopeft.domain.trial import Failure, FailureReason, Trial, TrialStatus
from tests.fakes.searches import toy_record

OBJECTIVES = load_objectives(("accuracy", "train_peak_bytes"))


def trial(number, status=TrialStatus.COMPLETE, failure=None):
    insertion = Insertion(
        method="dora",
        layers=(3, 4, 5),
        modules=("attention.key", "attention.query"),
        settings={"rank": 8, "alpha_ratio": 2.0, "dropout": 0.0},
    )
    return Trial(
        number=number,
        candidate=Candidate(insertions=(insertion,), learning_rate=0.00123456),
        parameters={},
        seed=0,
        status=status,
        attempt=1,
        failure=failure,
        seconds=10.0,
        measurements=Measurements(
            quality={"accuracy": 0.75}, train_peak=PeakMemory(live_bytes=3 * 2**20, source=MemorySource.TRACKED)
        ),
    )


def opened(resumed=False, **more):
    return RunOpened(toy_record(), "runs/toy", Budget(trials=5), Spent(), resumed, more.pop("done", 0), 0, 2, **more)


def ended(one, spent):
    scored = score(one, OBJECTIVES)
    return TrialEnded(one, scored.values, Front.of(OBJECTIVES, [scored]), Spent(trials=spent))


@pytest.fixture
def screen():
    return io.StringIO()


def told(progress, *events):
    with progress:
        for event in events:
            progress(event)


def test_plain_lines_say_what_a_trial_was_and_what_came_out(screen):
    told(PlainProgress(Console(file=screen, width=200)), opened(), TrialStarted(trial(0)), ended(trial(0), 1))
    lines = screen.getvalue().splitlines()
    assert lines[0] == "searching toy: budget 5 trials, 2 workers, runs/toy"
    assert "trial 0 complete | accuracy 0.750 | train_peak_bytes 3.0 MiB | dora r8 · q,k · layers 3-5" in lines[1]
    assert "about 20 s left" in lines[1], "four trials of ten seconds on two workers"


def test_a_resumed_run_says_what_is_done_lost_and_left(screen):
    event = RunOpened(
        *(toy_record(), "runs/toy", Budget(trials=5, seconds=7200), Spent(trials=3, seconds=3600), True, 3, 1, 2),
        counts={TrialStatus.COMPLETE: 2, TrialStatus.CRASHED: 1, TrialStatus.PENDING: 2},
        pending=2,
    )
    told(PlainProgress(Console(file=screen, width=200)), event)
    text = screen.getvalue()
    assert "3 trials done, 1 lost and tried again, 1 interrupted and tried again, 2 trials or 1 h 0 min left" in text


def test_failures_and_notices_are_told_with_their_words(screen):
    failure = Failure(reason=FailureReason.OUT_OF_MEMORY, text="Out of [memory]: 2 GiB asked.")
    told(
        PlainProgress(Console(file=screen, width=200)),
        opened(),
        Notice("Mind the [gap]."),
        ended(trial(1, TrialStatus.INFEASIBLE, failure), 1),
    )
    assert "Mind the [gap]." in screen.getvalue()
    assert "trial 1 infeasible | Out of [memory]: 2 GiB asked." in screen.getvalue()


def test_a_trial_that_goes_back_is_said_to_be_started_again(screen):
    failure = Failure(reason=FailureReason.WORKER_DIED, text="Its worker died.")
    told(PlainProgress(Console(file=screen, width=200)), opened(), ended(trial(1, TrialStatus.PENDING, failure), 0))
    assert "trial 1 will be started again: Its worker died." in screen.getvalue()


def test_the_live_display_shows_budget_statuses_running_trials_and_the_front(screen):
    progress = LiveProgress(Console(file=screen, width=120, force_terminal=False))
    told(
        progress,
        opened(),
        TrialStarted(trial(0)),
        ended(trial(0), 1),
        TrialStarted(trial(1)),
        RungReached(1, Rung(step=5, planned_steps=10, quality={}, train_loss=1.0, train_s=1.0)),
    )
    Console(file=screen, width=120).print(progress.draw())
    text = screen.getvalue()
    for words in ("1 of 5 trials", "1 complete", "1 running", "trial 1 50%", "front so far", "0.750", "3.0 MiB"):
        assert words in text


def test_the_live_display_of_a_resumed_run_begins_with_what_is_there(screen):
    front = Front.of(OBJECTIVES, [score(trial(0), OBJECTIVES)])
    progress = LiveProgress(Console(file=screen, width=120, force_terminal=False))
    told(progress, opened(resumed=True, done=1, counts={TrialStatus.COMPLETE: 1}, front=front))
    Console(file=screen, width=120).print(progress.draw())
    assert "1 complete" in screen.getvalue()
    assert "0.750" in screen.getvalue()


def test_a_mix_names_the_layers_that_its_parts_share_once():
    parts = (
        Insertion(method="serial", layers=(0, 2), modules=("ffn.out",), settings={"size": 24}),
        Insertion(method="prefix", layers=(0, 2), modules=(), settings={"length": 6}),
        Insertion(method="lora", layers=(1,), modules=("attention.query",), settings={"rank": 4}),
    )
    policy = Policy(name="ist", settings={"trained": 0.25})
    mix = trial(1).model_copy(update={"candidate": Candidate(insertions=parts, learning_rate=1e-4, policy=policy)})
    text = "serial size 24 on out + prefix length 6 · layers 0,2 · lora r4 · q · layer 1 · ist · lr 0.0001"
    assert candidate_text(mix) == text


@pytest.mark.parametrize("live", [False, True])
def test_a_trial_that_is_taken_up_says_where_or_why_not(screen, live):
    kind = LiveProgress if live else PlainProgress
    progress = kind(Console(file=screen, width=200, force_terminal=live))
    told(
        progress,
        opened(resumed=True),
        TrialStarted(trial(3, TrialStatus.RUNNING)),
        TrialTakenUp(3, TakenUp(step=12, planned_steps=24)),
        TrialTakenUp(4, TakenUp(step=0, planned_steps=24, problem="its checkpoint was not used: it is damaged")),
    )
    assert "trial 3 goes on at step 12 of 24" in screen.getvalue()
    assert "trial 4 starts anew; its checkpoint was not used: it is damaged" in screen.getvalue()
    assert progress.shares[3] == 0.5
