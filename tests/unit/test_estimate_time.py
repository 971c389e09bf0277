"""How long a budget lasts: a line through two short trainings, and what the budget pays for."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.app.probing import Pace, estimate_time, lasting
from autopeft.domain.budget import Budget
from autopeft.domain.errors import UserError
from autopeft.domain.estimate import TimeEstimate
from autopeft.domain.ports import Resources
from autopeft.domain.spec import SearchSpec
from tests.unit.estimate_models import space_file
from tests.unit.evaluate_models import save_model, write_data


def test_the_line_goes_through_both_trainings() -> None:
    pace = Pace.of(4.0 + 10 * 0.5, 4.0 + 30 * 0.5, 10, 30)
    assert pace == Pace(4.0, 0.5)


def test_a_line_does_not_fall() -> None:
    assert Pace.of(6.0, 5.0, 10, 30) == Pace(6.0, 0.0)
    assert Pace.of(1.0, 41.0, 10, 30) == Pace(0.0, 2.0)


def lasts(budget: Budget, workers: int = 1, gpus: float = 0.0, trial_s: float = 100.0) -> TimeEstimate:
    resources = Resources(workers=workers, cpus_per_worker=1, gpus_per_worker=gpus)
    return lasting(budget, trial_s, resources, device="x", probed=3, probe_s=1, fixed_s=10, step_s=0.9, steps=100)


def test_a_budget_of_trials_takes_rounds_of_workers() -> None:
    found = lasts(Budget(trials=10), workers=4)
    assert (found.trials, found.wall_s, found.ends_by, found.gpu_hours) == (10, 300.0, "trials", 0.0)


def test_a_budget_of_hours_pays_for_what_ends_in_them() -> None:
    found = lasts(Budget(seconds=3600.0), workers=2)
    assert (found.trials, found.wall_s, found.ends_by) == (72, 3600.0, "seconds")


def test_gpu_hours_are_those_of_the_gpus_that_trials_hold() -> None:
    found = lasts(Budget(gpu_seconds=8 * 3600.0), workers=2, gpus=0.5)
    assert (found.trials, found.ends_by) == (576, "gpu_seconds")
    assert found.gpu_hours == pytest.approx(8.0)
    assert found.wall_s == 288 * 100.0


def test_the_limit_that_runs_out_first_counts_and_one_trial_runs_at_least() -> None:
    assert lasts(Budget(trials=5, seconds=3600.0)).ends_by == "trials"
    assert lasts(Budget(trials=50, seconds=3600.0)).ends_by == "seconds"
    assert lasts(Budget(seconds=10.0)).trials == 1


@pytest.mark.slow
def test_a_probe_trains_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name, count in (("PROBED", 1), ("SHORT", 1), ("LONG", 3)):
        monkeypatch.setattr(f"autopeft.app.probing.{name}", count)
    spec = SearchSpec.model_validate(
        {
            "model": str(save_model(tmp_path / "model")),
            "data": write_data(tmp_path / "data"),
            "space": space_file(tmp_path),
            "training": {"batch_size": 8, "epochs": 2},
            "budget": "5",
            "resources": {"workers": 1},
        }
    )
    found = estimate_time(spec)
    assert found.probed == 1
    assert found.steps == 2 * 96 // 8
    assert found.trial_s == pytest.approx(found.fixed_s + found.steps * found.step_s)
    assert found.trial_s > 0
    assert (found.trials, found.ends_by, found.wall_s) == (5, "trials", pytest.approx(5 * found.trial_s))
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(UserError):
        estimate_time(spec.model_copy(update={"space": "nobody"}))
