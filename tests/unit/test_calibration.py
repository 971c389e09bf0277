"""Predictions are corrected by what was measured, and trusted less where they were wrong."""

from __future__ import annotations

import random

import numpy as np
import pytest

from autopeft.domain.calibration import STEP, Calibration, Observation, kind_of, observations, prediction_errors
from autopeft.domain.candidate import Candidate, Insertion, Policy
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.trial import Failure, FailureReason, Trial, TrialStatus

MIB = 2.0**20


def seen(pairs: list[tuple[float, float]], kind: str = "lora") -> list[Observation]:
    return [Observation(at, kind, predicted, measured) for at, (predicted, measured) in enumerate(pairs)]


def spread(count: int, seed: int = 0) -> list[float]:
    draw = np.random.default_rng(seed)
    return list(MIB * draw.uniform(100, 600, count))


def test_nothing_seen_corrects_nothing() -> None:
    calibration = Calibration.of([])
    assert calibration.bound(100 * MIB, "lora") == calibration.expected(100 * MIB) == 100 * MIB


def test_exact_predictions_stay_as_they_are_and_need_no_margin() -> None:
    calibration = Calibration.of(seen([(value, value) for value in spread(20)]))
    assert calibration == Calibration()


def test_unbiased_predictions_keep_a_margin_of_the_size_of_their_noise() -> None:
    draw = np.random.default_rng(1)
    calibration = Calibration.of(seen([(value, value * (1 + draw.normal(0, 0.002))) for value in spread(40)]))
    assert calibration.expected(300 * MIB) == pytest.approx(300 * MIB, rel=0.002)
    assert 0.001 < calibration.margin < 0.005


@pytest.mark.parametrize(
    ("truth", "after"),
    [
        pytest.param(lambda value: 1.3 * value, 3, id="a factor"),
        pytest.param(lambda value: value + 80 * MIB, 3, id="an offset"),
        pytest.param(lambda value: 0.8 * value + 90 * MIB, 5, id="both"),
    ],
)
def test_a_biased_predictor_is_corrected_after_a_few_trials(truth: object, after: int) -> None:
    pairs = [(value, truth(value)) for value in spread(after)]  # type: ignore[operator]
    calibration = Calibration.of(seen(pairs))
    for value in (50 * MIB, 300 * MIB, 900 * MIB):
        assert calibration.expected(value) == pytest.approx(truth(value), rel=1e-6)  # type: ignore[operator]
    assert calibration.margin == pytest.approx(0, abs=1e-6)


def test_two_trials_correct_nothing_but_widen_the_margin() -> None:
    calibration = Calibration.of(seen([(100 * MIB, 110 * MIB), (200 * MIB, 220 * MIB)]))
    assert calibration.expected(100 * MIB) == 100 * MIB
    assert calibration.margin == pytest.approx(0.1)


def test_an_odd_trial_moves_neither_correction_nor_margin() -> None:
    pairs = [(value, 1.02 * value) for value in spread(30)]
    pairs[11] = (pairs[11][0], 3 * pairs[11][0])
    calibration = Calibration.of(seen(pairs))
    assert calibration.expected(200 * MIB) == pytest.approx(204 * MIB, rel=1e-3)
    assert calibration.margin == pytest.approx(0, abs=1e-3)


def test_a_trial_that_went_over_the_limit_widens_the_margin_most_for_its_own_kind() -> None:
    right = seen([(value, value) for value in spread(20)])
    wrong = Observation(20, "prefix", 400 * MIB, 500 * MIB, wrong=True)
    calibration = Calibration.of([*right, wrong], limit=450 * MIB)
    assert calibration.bound(400 * MIB, "prefix") == pytest.approx(500 * MIB)
    assert calibration.margin_of("lora") == pytest.approx(STEP)
    assert calibration.expected(400 * MIB) == pytest.approx(400 * MIB)


def test_running_out_of_memory_widens_the_margin_step_by_step_until_such_trials_are_refused() -> None:
    right = seen([(value, value) for value in spread(20)])
    limit = 455 * MIB
    bounds = []
    for count in range(6):
        ran_out = [Observation(20 + at, "lora", 400 * MIB, None, wrong=True) for at in range(count)]
        bounds.append(Calibration.of([*right, *ran_out], limit=limit).bound(400 * MIB, "lora") / MIB)
    assert bounds[:3] == pytest.approx([400, 420, 440])
    # What refuses them is enough.
    assert bounds[3] > limit / MIB
    assert bounds[3:] == pytest.approx([455, 455, 455])


def test_a_margin_narrows_again_once_the_error_is_corrected() -> None:
    wrong = Observation(0, "lora", 400 * MIB, 480 * MIB, wrong=True)
    alone = Calibration.of([wrong], limit=450 * MIB)
    assert alone.margin_of("lora") == pytest.approx(0.2)
    later = Calibration.of([wrong, *(Observation(1 + at, "lora", p, 1.2 * p) for at, p in enumerate(spread(8)))])
    assert later.expected(400 * MIB) == pytest.approx(480 * MIB)
    assert later.margin_of("lora") == pytest.approx(0, abs=1e-6)


def test_the_order_in_which_trials_ended_does_not_matter() -> None:
    draw = random.Random(3)
    found = seen([(value, value * draw.uniform(0.97, 1.06)) for value in spread(90)])
    calibration = Calibration.of(found, limit=500 * MIB)
    draw.shuffle(found)
    assert Calibration.of(found, limit=500 * MIB) == calibration


# From the trial table


def candidate(method: str = "lora", policy: str | None = None) -> Candidate:
    insertion = Insertion(method=method, layers=(0,), modules=(), settings={})
    return Candidate(
        insertions=(insertion,), learning_rate=1e-3, policy=Policy(name=policy) if policy is not None else None
    )


def peak(mib: float | None, source: MemorySource = MemorySource.TRACKED) -> PeakMemory | None:
    return None if mib is None else PeakMemory(live_bytes=int(mib * MIB), source=source)


def trial(
    number: int,
    foretold: float | None,
    measured: float | None,
    status: TrialStatus = TrialStatus.COMPLETE,
    reason: FailureReason | None = None,
    attempt: int = 1,
    **more: object,
) -> Trial:
    done = status is TrialStatus.COMPLETE
    values = {
        "steps": 10 if done else 2,
        "planned_steps": 10,
        "foretold_peak": peak(foretold, MemorySource.PREDICTED),
        "train_peak": peak(measured),
        **more,
    }
    return Trial(
        number=number,
        candidate=candidate(),
        parameters={},
        seed=0,
        status=status,
        attempt=attempt,
        measurements=Measurements.model_validate(values),
        failure=None if reason is None else Failure(reason=reason, text="."),
    )


def test_kinds_are_named_after_methods_and_treatments() -> None:
    assert kind_of(candidate("dora", "ist")) == "dora|ist"
    assert kind_of(Candidate(insertions=(), learning_rate=1e-3)) == "head"


def test_what_trials_tell() -> None:
    infeasible = TrialStatus.INFEASIBLE
    trials = [
        trial(0, 100, 101),
        trial(1, None, 100),  # without a prediction
        trial(2, 100, 90, TrialStatus.CRASHED, FailureReason.EXCEPTION),  # ended before its heaviest step, perhaps
        trial(3, 200, 230, infeasible, FailureReason.OVER_LIMIT),
        trial(4, 200, 50, infeasible, FailureReason.OUT_OF_MEMORY),
        trial(5, 900, None, infeasible, FailureReason.PREDICTED_OVER_LIMIT, attempt=0),
    ]
    assert observations(trials) == (
        Observation(0, "lora", 100 * MIB, 101 * MIB),
        Observation(3, "lora", 200 * MIB, 230 * MIB, wrong=True),
        Observation(4, "lora", 200 * MIB, None, wrong=True),
    )


def test_a_pruning_trial_tells_of_both_phases() -> None:
    phases = {"foretold_estimation_peak": peak(300, MemorySource.PREDICTED), "estimation_peak": peak(310)}
    both = observations([trial(0, 100, 101, **phases)])
    assert [(one.predicted / MIB, one.measured and one.measured / MIB) for one in both] == [(300, 310), (100, 101)]
    over = trial(1, 100, None, TrialStatus.INFEASIBLE, FailureReason.OVER_LIMIT, **phases)
    assert observations([over]) == (Observation(1, "lora", 300 * MIB, 310 * MIB, wrong=True),)


def test_a_run_knows_its_own_error() -> None:
    assert prediction_errors([trial(0, None, 100)]) is None
    found = prediction_errors(
        [
            trial(0, 99, 100, calibrated_peak_bytes=int(99 * MIB)),
            trial(1, 98, 100, calibrated_peak_bytes=int(99 * MIB)),
            trial(2, 104, 100, calibrated_peak_bytes=int(100 * MIB)),
            trial(3, 200, 50, TrialStatus.INFEASIBLE, FailureReason.OUT_OF_MEMORY),
        ]
    )
    assert found is not None
    assert (found.trials, found.worst_trial) == (3, 2)
    assert (found.bias, found.median, found.worst) == pytest.approx((0.01 / 3, 0.02, 0.04))
    assert (found.calibrated_median, found.calibrated_worst) == pytest.approx((0.01, -0.01))
