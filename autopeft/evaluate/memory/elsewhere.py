"""The training memory of a search's candidates on another model, which need not be here."""

from __future__ import annotations

import torch

from autopeft.domain.candidate import Candidate
from autopeft.domain.carrying import carried
from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import ModelLayout
from autopeft.domain.memory import Prediction
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import ModelSpec, PredictForSpec, TrainingSpec
from autopeft.evaluate.arithmetic import arithmetic_dtype
from autopeft.evaluate.memory.bare import bare_model
from autopeft.evaluate.memory.forecast import Forecast
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.evaluate.train import planned_steps


class Elsewhere:
    """An `autopeft.domain.ports.MemoryForecast` that carries candidates of one model over to another.

    Layers go by relative depth, modules by role, sizes stay as they are. A candidate that does not fit there (a layer
    lacks a role, a rank is larger than a matrix) has no prediction.
    """

    def __init__(self, before: ModelLayout, there: Forecast) -> None:
        """`before` is the layout that candidates are bound to; `there` foretells those of the other model."""
        self._before = before
        self._there = there

    @property
    def setup(self) -> Setup:
        """Of the step that is foretold."""
        return self._there.setup

    def predict(self, candidate: Candidate) -> Prediction | None:
        """The peak of the candidate's training on the other model; None where it does not fit or cannot be told."""
        try:
            return self._there.predict(self.carried(candidate))
        except UserError:
            return None

    def why_not(self, candidate: Candidate) -> str:
        """Why there is no prediction; empty where there is one."""
        try:
            return self._there.why_not(self.carried(candidate))
        except UserError as error:
            return str(error)

    def estimation(self, candidate: Candidate) -> Prediction | None:
        """The peak of a pruning's estimation phase there."""
        try:
            return self._there.estimation(self.carried(candidate))
        except UserError:
            return None

    def carried(self, candidate: Candidate) -> Candidate:
        """The candidate on the other model.

        Raises:
            UserError: where it does not fit there.
        """
        layout = self._there.layout
        found = carried(candidate, self._before, layout)
        problems = [problem for one in found.insertions for problem in METHODS[one.method].problems(one, layout)]
        if found.policy is not None:
            problems += POLICIES[found.policy.name].problems(found, layout)
        if found.pruning is not None:
            problems += CRITERIA[found.pruning.criterion].problems(found, layout)
        if problems:
            raise UserError(*problems)
        return found


def open_elsewhere(
    asked: PredictForSpec, before: ModelLayout, task: TaskInfo, training: TrainingSpec, seed: int
) -> Elsewhere:
    """The forecast for the model and the size that a spec's `predict_for` names; loads no weights.

    Args:
        asked: Model, batch and device.
        before: Layout of the model that is searched on.
        task: What the data set asks; the other model gets the same head.
        training: How trials train, batch and length aside.
        seed: Of the trials, on which policies and prunings depend.

    Raises:
        UserError: where there is no such model, it cannot do the task, or it takes no rows of so many tokens.
    """
    try:
        model, layout = bare_model(ModelSpec(source=asked.model, revision=asked.revision, dtype=asked.dtype), task)
    except UserError as error:
        raise UserError(*(_placed(problem) for problem in error.problems)) from error
    if layout.max_positions is not None and layout.max_positions < asked.seq:
        found = f"{asked.model} takes no rows of {asked.seq} tokens"
        raise UserError(Problem("predict_for.seq", found, f"1 to {layout.max_positions}"))
    target = "cpu" if asked.device == "cpu" else "cuda"
    setup = Setup(
        rows=asked.batch,
        tokens=asked.seq,
        target="cuda" if target == "cuda" else "cpu",
        lower=arithmetic_dtype(torch.device(target), next(model.parameters()).dtype),
        clip=training.clip_norm is not None,
        checkpointing=training.gradient_checkpointing,
        accumulates=training.gradient_accumulation > 1,
    )
    # As many as its trials do: which steps are the heaviest of a policy may depend on it.
    steps = planned_steps(training, -(-task.rows["train"] // training.batch_size))
    forecast = Forecast(MetaModel(model, layout), setup, seed=seed, steps=steps, passes=training.gradient_accumulation)
    return Elsewhere(before, forecast)


def _placed(problem: Problem) -> Problem:
    """A problem with the other model, under the key that names it."""
    where = problem.where.removeprefix("model.")
    key = where if where in PredictForSpec.model_fields else "model"
    return Problem(f"predict_for.{key}", problem.found, problem.allowed, problem.next_step)
