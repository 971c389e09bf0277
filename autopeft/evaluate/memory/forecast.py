"""The training memory of a search's candidates, foretold as its trials will measure it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from autopeft.domain.candidate import Candidate
from autopeft.domain.layout import ModelLayout
from autopeft.domain.memory import Prediction
from autopeft.domain.results import TaskInfo
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.arithmetic import arithmetic_dtype, batch_load
from autopeft.evaluate.base_model import BaseModel, build_on_meta
from autopeft.evaluate.data.batches import Batch, plan
from autopeft.evaluate.data.load import DataSet, load_data
from autopeft.evaluate.devices import choose_device
from autopeft.evaluate.insertion import Inserted
from autopeft.evaluate.memory.bare import bare_model, in_few_bits
from autopeft.evaluate.memory.breakdown import StepParts
from autopeft.evaluate.memory.course import earlier
from autopeft.evaluate.memory.kinds import EVERYTHING, Pattern
from autopeft.evaluate.memory.predictor import StepPredictor, prediction_of
from autopeft.evaluate.memory.rehearsal import Rehearsal, alike, rehearsed
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.step import Timeline
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.pruning import scores
from autopeft.evaluate.pruning.decision import decide
from autopeft.evaluate.pruning.phase import Estimation, apply, estimation_steps
from autopeft.evaluate.pruning.shape import sites
from autopeft.evaluate.pruning.surgery import Folded, Pruned
from autopeft.evaluate.tasks import make_task
from autopeft.evaluate.train import planned_steps
from autopeft.evaluate.untouched import Untouched

ASSUMED_STEPS = 100


class Forecast:
    """An `autopeft.domain.ports.MemoryForecast` for one model, one setup and one length of training."""

    def __init__(
        self,
        model: MetaModel,
        setup: Setup,
        *,
        seed: int,
        steps: int,
        batches: Sequence[Batch] | None = None,
        passes: int = 1,
    ) -> None:
        """`steps` are the planned optimiser steps of so many `passes` each, `batches` all of the training in its order
        (by default all alike) and `seed` the trials', on which policies and prunings depend."""
        self._model = model
        self.setup = setup
        self._seed = seed
        self._steps = steps
        self._given = batches
        self._passes = passes
        self._predictors: dict[Setup, StepPredictor] = {setup: StepPredictor(model, setup)}
        self._known: dict[str, Prediction | str] = {}

    @cached_property
    def _batches(self) -> Sequence[Batch]:
        return self._given if self._given is not None else alike(self.setup, self._steps * self._passes)

    @property
    def layout(self) -> ModelLayout:
        """Of the model."""
        return self._model.layout

    @property
    def dtypes(self) -> str:
        """Of the frozen weights and, after a comma, what autocast computes in."""
        lower = self.setup.lower
        return dtype_name(self._model.dtype) + ("" if lower is None else f", {dtype_name(lower)} autocast")

    @property
    def attention(self) -> str:
        """Transformers' name of the attention's implementation."""
        return self._model.attention

    @property
    def traces(self) -> int:
        """How many models were traced so far."""
        return sum(one.traces for one in self._predictors.values())

    def predict(self, candidate: Candidate) -> Prediction | None:
        """The peak of the training phase: after the pruning of a candidate that prunes; None where it is not known.

        A method may defy tracing without weights; `why_not` then says how.
        """
        return self._quietly(candidate.digest, lambda: self._predicted(candidate))

    def traced(self, candidate: Candidate, workspace: int) -> Prediction:
        """The same from a trace of the whole model, with what CUDA's caching allocator would hold; slower.

        Args:
            candidate: What to put in.
            workspace: Bytes that libraries hold in the allocator.

        Raises:
            As `MetaModel.timeline`.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pattern = self._heaviest(candidate)[0]
            if candidate.pruning is not None:
                before, longest = (one._cut(candidate, pattern) for one in (self.at(earlier(self.setup)), self))
                return prediction_of(longest, workspace, before)
            before, longest = (
                self._model.timeline(candidate, setup, None, pattern) for setup in (earlier(self.setup), self.setup)
            )
            return prediction_of(longest, workspace, before)

    def at(self, setup: Setup) -> Forecast:
        """A forecast for the same model at another setup."""
        return Forecast(self._model, setup, seed=self._seed, steps=self._steps, passes=self._passes)

    def why_not(self, candidate: Candidate) -> str:
        """Why there is no prediction; empty where there is one."""
        self.predict(candidate)
        known = self._known[candidate.digest]
        return known if isinstance(known, str) else ""

    def estimation(self, candidate: Candidate) -> Prediction | None:
        """The peak of the estimation phase; None for a candidate that prunes nothing, or where it is not known."""
        if candidate.pruning is None:
            return None
        return self._quietly(f"estimation {candidate.digest}", lambda: self._estimated(candidate))

    def _quietly(self, key: str, predicted: Callable[[], Prediction]) -> Prediction | None:
        known = self._known.get(key)
        if known is None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    known = predicted()
            except Exception as error:  # whatever a library raises on a model without weights
                known = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._known[key] = known
        return known if isinstance(known, Prediction) else None

    def _estimated(self, candidate: Candidate) -> Prediction:
        pruning = candidate.pruning
        assert pruning is not None
        wiring = self._model.wiring(candidate, self.setup)
        steps = estimation_steps(pruning, max(2, self._steps))

        def masked(untouched: Untouched, inserted: Inserted) -> None:
            Estimation(untouched, inserted, pruning, wiring, seed=self._seed, steps=steps, passes=1)

        return prediction_of(self._model.timeline(candidate, self.setup, changed=masked))

    def _rehearsal(self, candidate: Candidate) -> Rehearsal:
        done = 0 if candidate.pruning is None else estimation_steps(candidate.pruning, max(2, self._steps))
        batches = self._batches[min(done, self._steps - 1) * self._passes :]
        return rehearsed(candidate, self.layout, self._seed, batches, self._passes, self.setup)

    def _predicted(self, candidate: Candidate) -> Prediction:
        return self._heaviest(candidate)[1]

    def _heaviest(self, candidate: Candidate) -> tuple[Pattern, Prediction]:
        """The step or probe that needs the most."""
        rehearsal = self._rehearsal(candidate)
        steps = rehearsal.steps
        if candidate.pruning is not None:
            # Which of the heaviest steps it is hardly matters beside what was pruned, and each is a trace.
            steps = steps[:1]
        found = [
            (pattern, self._parts(candidate, self.setup, pattern), moment)
            for pattern, moments in steps
            for moment in moments
        ]
        for probe in rehearsal.probes:
            setup = replace(self.setup, rows=probe.rows, accumulates=probe.batches > 1, evaluating=True)
            parts = self._parts(candidate, setup, EVERYTHING)
            found.append((EVERYTHING, replace(parts, update=0.0), probe.moment))
        pattern, parts, moment = max(found, key=lambda one: one[1].peak_bytes(one[2]))
        return pattern, parts.prediction(moment)

    def _parts(self, candidate: Candidate, setup: Setup, pattern: Pattern) -> StepParts:
        if candidate.pruning is not None:
            return StepParts.of(self.at(setup)._cut(candidate, pattern), accumulates=setup.accumulates)
        if setup not in self._predictors:
            self._predictors[setup] = StepPredictor(self._model, setup)
        return self._predictors[setup].parts(candidate, pattern)

    def _cut(self, candidate: Candidate, pattern: Pattern) -> Timeline:
        """Of a draw: what scores will choose is not known, and how much is kept is the same."""
        pruning = candidate.pruning
        assert pruning is not None
        wiring = self._model.wiring(candidate, self.setup)
        which = {name: float(pruning.settings[key]) > 0 for name, key in (("heads", "heads"), ("units", "ffn"))}
        which["within"] = pruning.settings["shared_heads"] == "queries"
        drawn = scores.random(sites(candidate.insertions, self.layout), self.layout, self._seed, **which)
        pruned = Pruned(decide(drawn, pruning.settings), wiring, Folded())

        def cut(untouched: Untouched, inserted: Inserted) -> None:
            apply(untouched, inserted, pruned)

        return self._model.timeline(candidate, self.setup, None, pattern, cut)


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch's."""
    return str(dtype).removeprefix("torch.")


def largest_of(batches: Sequence[Batch]) -> tuple[int, int, bool]:
    """Rows, tokens per row and whether some are padding, of the largest batch."""
    largest = max(batches, key=batch_load)
    rows, tokens = largest.inputs["input_ids"].shape
    return int(rows), int(tokens), largest.tokens < rows * tokens


def forecast_at(
    spec: SearchSpec, task: TaskInfo, rows: int, tokens: int | None, *, padded: bool = True, target: str = "cuda"
) -> Forecast:
    """The forecast of a search on rows that are not there: its model from a config, its largest batch as said.

    Where `tokens` are not said, texts are as long as the spec and the model let them be. A training of unknown length
    has `ASSUMED_STEPS` steps, on which only policies and prunings depend.

    Raises:
        UserError: where the model cannot be had or cannot do the task.
    """
    model, layout = bare_model(spec.model, task)
    if tokens is None:
        tokens = min(spec.data.max_tokens, layout.max_positions or spec.data.max_tokens)
    passes = spec.training.gradient_accumulation
    setup = Setup(
        rows=rows,
        tokens=tokens,
        padded=padded,
        target="cuda" if target == "cuda" else "cpu",
        lower=arithmetic_dtype(torch.device(target), next(model.parameters()).dtype),
        clip=spec.training.clip_norm is not None,
        checkpointing=spec.training.gradient_checkpointing,
        accumulates=passes > 1,
    )
    steps = spec.training.steps or ASSUMED_STEPS
    return Forecast(MetaModel(model, layout), setup, seed=spec.seed, steps=steps, passes=passes)


def open_forecast(spec: SearchSpec, target: str | None = None, *, model: BaseModel | None = None) -> Forecast:
    """The forecast of a search: of its model without weights, on its own rows, as its workers will train.

    Args:
        spec: Of the search.
        target: `cuda` or `cpu`; by default what this machine has.
        model: Its model on `meta`, where that is built already.

    Raises:
        UserError: as `inspect_run` does.
    """
    data = load_data(spec.data, spec.seed)
    return forecast_of(spec, data, model or build_on_meta(spec.model, data.task), target)


def forecast_of(spec: SearchSpec, data: DataSet, base: BaseModel, target: str | None = None) -> Forecast:
    """The forecast of a search whose rows and whose model on `meta` are there already; it keeps the model."""
    _, layout = in_few_bits(base, spec.model)
    batches = make_task(spec, data, base, layout).train_batches()
    steps = planned_steps(spec.training, len(batches))
    passes = spec.training.gradient_accumulation
    planned = list(plan(batches, steps * passes, spec.seed))
    rows, tokens, padded = largest_of(planned)
    chosen = target or choose_device("auto").type
    dtype = next(base.model.parameters()).dtype
    setup = Setup(
        rows=rows,
        tokens=tokens,
        padded=padded,
        target="cuda" if chosen == "cuda" else "cpu",
        lower=arithmetic_dtype(torch.device(chosen), dtype),
        clip=spec.training.clip_norm is not None,
        checkpointing=spec.training.gradient_checkpointing,
        accumulates=passes > 1,
    )
    return Forecast(MetaModel(base.model, layout), setup, seed=spec.seed, steps=steps, batches=planned, passes=passes)
