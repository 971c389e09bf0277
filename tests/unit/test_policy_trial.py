"""A whole trial with a policy: what it measures, and that the base model is what it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.domain.candidate import Policy
from autopeft.domain.measurements import Measurements
from autopeft.domain.trial import TrialStatus
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.memory.peaks import TrackedMeter
from tests.unit.evaluate_trials import opened, run, spec_of, task_of
from tests.unit.policy_runs import policy_of, rows, training

POLICIES = {
    "all": None,
    "ist": policy_of("ist", interval=5, trained=0.34),
    "top-layers": policy_of("top-layers", layers=1),
    "dropbp": policy_of("dropbp", drop=0.7),
}


def measured(folder: Path, kind: str, policies: dict[str, Policy | None]) -> dict[str, Measurements]:
    """A trial per policy on one evaluator, the plain one first and last, which must agree."""
    evaluator, found = opened(spec_of(folder, kind)), {}
    for number, (name, policy) in enumerate([*policies.items(), ("again", None)]):
        task = task_of(evaluator, folder, number)
        task = task.model_copy(update={"candidate": task.candidate.model_copy(update={"policy": policy})})
        outcome, _ = run(evaluator, task)
        assert outcome.status is TrialStatus.COMPLETE, outcome.failure
        assert not outcome.recycle_worker
        assert outcome.measurements is not None
        found[name] = outcome.measurements
    return found


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_trial_with_a_policy_is_measured_and_leaves_the_base_as_it_was(tmp_path: Path, kind: str) -> None:
    chosen = POLICIES if kind == "bert" else {name: POLICIES[name] for name in ("all", "ist", "top-layers")}
    found = measured(tmp_path, kind, chosen)
    plain = found.pop("all")
    again = found.pop("again")
    assert again.first_losses == plain.first_losses
    assert again.quality == plain.quality
    assert (plain.layer_scores, plain.scored_layers) == ((), ())
    for name, one in found.items():
        assert one.trainable_parameters == plain.trainable_parameters  # what may train at some time
        assert one.steps == plain.steps
        assert one.first_losses[0] == plain.first_losses[0]
        assert one.first_losses != plain.first_losses, name
        assert one.train_mean_bytes is not None
        assert one.train_peak is not None
        assert plain.train_mean_bytes is not None
        assert one.train_mean_bytes < plain.train_mean_bytes, name
        assert one.train_mean_bytes <= one.train_peak.live_bytes
    ist = found["ist"]
    assert ist.scored_layers == (0, 1, 2)
    assert [step for step, _ in ist.layer_scores] == [5, 10, 15, 20]
    assert all(len(scores) == 3 for _, scores in ist.layer_scores)
    assert Measurements.model_validate_json(ist.model_dump_json()) == ist
    top, whole = found["top-layers"].train_peak, plain.train_peak
    assert top is not None
    assert whole is not None
    assert top.live_bytes < whole.live_bytes


def test_of_two_largest_batches_the_one_with_padding_is_watched() -> None:
    """Padding needs a mask: with it a batch of one size takes more than without."""

    def batch(number: int) -> Batch:
        full = rows(number)
        if number != 5:
            return full
        mask = full.inputs["attention_mask"].clone()
        mask[0, -2:] = 0
        return replace(full, inputs={**full.inputs, "attention_mask": mask}, tokens=full.tokens - 2)

    peaks = []
    for every in (False, True):
        with training("bert", None, steps=16, batch=batch) as (run, _):
            assert isinstance(run.meter, TrackedMeter)
            run.meter._sample = frozenset(range(16) if every else ())
            list(run.run())
            peaks.append(run.meter.peak())
    assert peaks[0] == peaks[1]
