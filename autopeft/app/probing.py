"""How long a budget lasts: a few candidates trained for a few steps, and a straight line through what they took."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autopeft.app.candidate_file import read_candidate
from autopeft.app.planning import evaluator_of, make_plan
from autopeft.app.reproducing import evaluated
from autopeft.domain.budget import Budget
from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.estimate import TimeEstimate
from autopeft.domain.ports import EvaluationTask, Evaluator, Resources
from autopeft.domain.spec import SearchSpec
from autopeft.domain.trial import Outcome, TrialStatus
from autopeft.evaluate.train import planned_steps
from autopeft.plugins import locate
from autopeft.search import make_sampler

PROBED = 3
"""Candidates that are trained, drawn at random with the spec's seed."""
SHORT, LONG = 10, 30
"""Steps of the two trainings of each. As a trial on the CPU tracks the memory of ten steps, both do."""
_TRIES = 4
"""So many draws for each candidate, in case some do not fit or fail."""


@dataclass(frozen=True)
class Pace:
    """What one candidate took."""

    fixed_s: float
    step_s: float

    @classmethod
    def of(cls, short_s: float, long_s: float, short: int, long: int) -> Pace:
        """The line through two trainings of so many steps, which cannot fall."""
        step_s = max(0.0, (long_s - short_s) / (long - short))
        return cls(max(0.0, short_s - short * step_s), step_s)


def estimate_time(spec: SearchSpec, candidate: Path | None = None) -> TimeEstimate:
    """Train a few steps of a few candidates, or of the one in a file, and say how long the spec's budget lasts.

    What is trained is thrown away. One trial at a time runs, with as many threads as a worker has; workers that share
    memory bandwidth take longer.

    Raises:
        UserError: with what is wrong with the spec, and where no candidate could be trained.
    """
    plan = make_plan(spec)
    began = time.perf_counter()
    drawn: Sequence[Candidate]
    if candidate is not None:
        drawn = [read_candidate(candidate, plan.inspection.layout)]
    else:
        sampler = make_sampler("random", plan.space, (), spec.seed)
        proposals = (sampler.ask(number) for number in range(PROBED * _TRIES))
        drawn = [proposal.candidate for proposal in proposals if proposal is not None]
    paces: list[Pace] = []
    device = failure = ""
    with tempfile.TemporaryDirectory(prefix="autopeft-probe-") as folder:
        short, long = (_evaluator(spec, plan.resources, steps) for steps in (SHORT, LONG))
        try:
            warmed = False
            for one in drawn:
                if len(paces) == PROBED:
                    break
                if not warmed:  # the first training loads kernels and fills caches
                    warmed = _trained(short, one, spec.seed, Path(folder) / "warm").status is TrialStatus.COMPLETE
                outcomes = [
                    _trained(evaluator, one, spec.seed, Path(folder) / f"{len(paces)}-{name}")
                    for name, evaluator in (("short", short), ("long", long))
                ]
                bad = next((outcome for outcome in outcomes if outcome.status is not TrialStatus.COMPLETE), None)
                if bad is not None:
                    failure = bad.failure.text if bad.failure is not None else bad.status.value
                    continue
                paces.append(Pace.of(outcomes[0].seconds, outcomes[1].seconds, SHORT, LONG))
                device = outcomes[1].measurements.device if outcomes[1].measurements else ""
        finally:
            short.close()
            long.close()
    if not paces:
        found = f"no candidate could be trained: {failure}"
        raise UserError(Problem("--probe", found, "", "See `autopeft doctor`, or lower --batch."))
    batches = math.ceil(plan.inspection.task.rows["train"] / spec.training.batch_size)
    steps = planned_steps(spec.training, batches)
    fixed_s, step_s = (sum(getattr(pace, name) for pace in paces) / len(paces) for name in ("fixed_s", "step_s"))
    return lasting(
        spec.budget,
        fixed_s + steps * step_s,
        plan.resources,
        device=device,
        probed=len(paces),
        probe_s=time.perf_counter() - began,
        fixed_s=fixed_s,
        step_s=step_s,
        steps=steps,
    )


def lasting(
    budget: Budget,
    trial_s: float,
    resources: Resources,
    *,
    device: str,
    probed: int,
    probe_s: float,
    fixed_s: float,
    step_s: float,
    steps: int,
) -> TimeEstimate:
    """How many trials of so many seconds a budget pays for, by the limit that ends it first; at least one."""
    per_trial = {
        "trials": 1.0,
        "seconds": trial_s / resources.workers,
        "gpu_seconds": trial_s * resources.gpus_per_worker,
    }
    limits = {"trials": budget.trials, "seconds": budget.seconds, "gpu_seconds": budget.gpu_seconds}
    paid = {
        kind: limit / per_trial[kind] for kind, limit in limits.items() if limit is not None and per_trial[kind] > 0
    }
    ends_by = min(paid, key=lambda kind: paid[kind]) if paid else "trials"
    trials = max(1, math.floor(paid.get(ends_by, 1)))
    return TimeEstimate.model_validate(
        {
            "device": device,
            "probed": probed,
            "probe_s": probe_s,
            "fixed_s": fixed_s,
            "step_s": step_s,
            "steps": steps,
            "trial_s": trial_s,
            "workers": resources.workers,
            "budget": str(budget),
            "trials": trials,
            "wall_s": math.ceil(trials / resources.workers) * trial_s,
            "gpu_hours": trials * trial_s * resources.gpus_per_worker / 3600,
            "ends_by": ends_by,
        }
    )


def _evaluator(spec: SearchSpec, resources: Resources, steps: int) -> Evaluator:
    training = spec.training.model_copy(update={"steps": steps})
    reference = evaluator_of(spec.model_copy(update={"training": training, "max_memory": None}), resources)
    evaluator: Evaluator = locate(reference.target)(**reference.arguments)
    return evaluator


def _trained(evaluator: Evaluator, candidate: Candidate, seed: int, folder: Path) -> Outcome:
    folder.mkdir()
    task = EvaluationTask(number=0, attempt=1, seed=seed, candidate=candidate, artefact_dir=str(folder))
    return evaluated(evaluator, task)
