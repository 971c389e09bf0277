"""Training what was inserted: a compact loop that pauses after every optimiser step."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from autopeft.domain.candidate import Policy
from autopeft.domain.layout import ModelLayout
from autopeft.domain.spec import TrainingSpec
from autopeft.evaluate.arithmetic import autocast, batch_load, moved, on_host, wait
from autopeft.evaluate.data.batches import Batch
from autopeft.evaluate.insertion import Inserted
from autopeft.evaluate.memory.peaks import Load, PeakMeter, training_meter
from autopeft.evaluate.outcomes import NotFiniteError
from autopeft.evaluate.policies import POLICIES, Context, RunningPolicy
from autopeft.evaluate.policies.gates import Gates
from autopeft.evaluate.schedule import extend, schedule_of

MEAN_STEPS = 8
"""So many random steps are tracked for the mean memory of a step, where no allocator reports every one."""


@dataclass(frozen=True)
class Step:
    """One optimiser step that was done."""

    number: int
    """Counts from 1."""
    loss: float
    """Mean over its forward passes."""
    tokens: int
    """Tokens it trained on, padding excluded."""
    seconds: float


def planned_steps(spec: TrainingSpec, batches: int) -> int:
    """Optimiser steps of a training on so many batches per epoch; at least 1."""
    if spec.steps is not None:
        return spec.steps
    return max(1, round(spec.epochs * batches / spec.gradient_accumulation))


def rung_steps(spec: TrainingSpec, steps: int) -> tuple[int, ...]:
    """The steps after which validation quality is reported, ascending; the last is the last step."""
    return tuple(sorted({max(1, round(share * steps)) for share in spec.rungs}))


def training_mode(
    model: Any, base: Any, layout: ModelLayout, trained: Collection[int] | None = None, *, checkpointing: bool = False
) -> None:
    """Training mode where something is trained, evaluation mode, so no dropout, where nothing is.

    `trained` holds the `id` of every parameter that may train at some time in the trial, whatever a policy freezes just
    now; by default those that require a gradient.

    In evaluation mode are the blocks without a trainable parameter, and everything of the body outside the blocks that
    holds none (embeddings, poolers, what the body itself does between its blocks). Hidden states below the lowest
    trained block are then the same in every epoch. A dropout between body and head belongs to the head and stays on.

    With `checkpointing`, a block itself is in training mode in any case, because only then does it compute anew; what
    is inside it is not.
    """
    if trained is None:
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    model.train()
    blocks = [layer.path for layer in layout.layers]

    def visit(path: str, module: nn.Module) -> None:
        if any(block.startswith(f"{path}.") for block in blocks):
            module.training = False  # its own flag alone: the blocks decide for themselves
            for name, child in module.named_children():
                visit(f"{path}.{name}", child)
        elif not any(id(parameter) in trained for parameter in module.parameters()):
            module.eval()

    for name, child in base.named_children():
        if any(True for _ in child.parameters()):
            visit(name, child)
    for block in blocks if checkpointing else ():
        base.get_submodule(block).training = True


class Training:
    """The training of one candidate, step by step.

    AdamW over everything that requires a gradient, or the optimiser that the method brings; the learning rate by
    `schedule_of`, anew for parameters that a growing method brings (`extend`); the loss the model's own, divided by the
    forward passes per step. No dropout in layers that hold nothing trainable (`training_mode`). A policy decides before
    every step which layers train in it.
    """

    def __init__(
        self,
        inserted: Inserted,
        batches: Sequence[Batch],
        spec: TrainingSpec,
        learning_rate: float,
        device: torch.device,
        dtype: torch.dtype,
        done: int = 0,
        planned: int | None = None,
        policy: Policy | None = None,
        seed: int = 0,
    ) -> None:
        """A training, or one phase of it.

        `batches` holds `gradient_accumulation` batches per step, in the order of training. Steps are counted on from
        `done`, those of earlier phases, and rungs are shares of the `planned` steps of all phases; the schedule of the
        learning rate is the phase's own. `seed` is the trial's, for the policy's draws and the choice of watched steps.
        """
        # A decoder's cache of keys and values serves generation only; training would keep it for nothing.
        inserted.base.config.use_cache = False
        if spec.gradient_checkpointing:
            inserted.base.gradient_checkpointing_enable({"use_reentrant": False})
        self._inserted = inserted
        self._model = inserted.model
        self._batches = batches
        self._spec = spec
        self._device = device
        self._dtype = dtype
        self._accumulate = spec.gradient_accumulation
        self.steps = len(batches) // self._accumulate
        self._done = done
        self._planned = planned or done + self.steps
        self._rungs = frozenset(rung_steps(spec, self._planned))
        self._parameters = inserted.trainable()
        self._trained = frozenset(id(parameter) for parameter in self._parameters)
        self._position = 0
        self._optimizer = inserted.optimizer(learning_rate, spec.weight_decay)
        self._schedule = schedule_of(self._optimizer, spec, self.steps)
        self._sizes = [max(batch_load(batch) for batch in self._of(number)) for number in range(self.steps)]
        sample = (
            np.random.default_rng(seed).permutation(range(min(1, self.steps - 1), self.steps))[:MEAN_STEPS].tolist()
        )
        self.meter: PeakMeter = training_meter(device, self._sizes, self._model, self._optimizer, sample)
        self.gates = Gates(inserted.base, inserted.layout, self._parameters)
        self._policy = self._started(policy, seed)

    def run(self) -> Iterator[Step]:
        """Do the steps one by one; between two the caller may evaluate the model or stop.

        Raises:
            NotFiniteError: where a loss is NaN or infinite, before the weights are changed by it.
        """
        for number in range(self._position, self.steps):
            if number == self._position or not self._model.training:  # a prediction may have come between
                self._training_mode()
            started = time.perf_counter()
            loss, tokens = self._step(number)
            if self._done + number + 1 in self._rungs:
                wait(self._device)
            self._position = number + 1
            yield Step(self._done + number + 1, loss, tokens, time.perf_counter() - started)

    @property
    def end(self) -> int:
        """The last step of this phase, counted over all phases."""
        return self._done + self.steps

    def free(self) -> None:
        """Drop gradients and optimiser state, which prediction does not need, and take the policy away."""
        if self._policy is not None:
            self._policy.close()
        for parameter in self._parameters:
            parameter.grad = None
        self._optimizer.state.clear()

    def layer_scores(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """Importance over time of the layers that hold something trainable (`gates.layers`), where a policy scores."""
        found = self._policy.scores() if self._policy is not None else ()
        return tuple((self._done + step, scores) for step, scores in found)

    def state(self, *, copy: bool = True) -> dict[str, Any]:
        """Everything that the steps to come and what is said of them depend on, as tensors and JSON values.

        To be loaded by a new training of the same candidate, seed and batches, which then goes on as if it had never
        been interrupted. Where `copy` is false, tensors that are on the CPU are the live ones: until the next step.
        """
        return {
            "step": self._position,
            "methods": on_host(self._inserted.state(), copy),
            "weights": on_host(self._parameters, copy),
            "optimizer": on_host(self._optimizer.state_dict(), copy),
            "schedule": on_host(self._schedule.state_dict(), copy),
            "policy": self._policy.state() if self._policy is not None else {},
            "meter": self.meter.state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, whose tensors are the training's own from then on.

        Raises:
            ValueError: where the state is of another candidate.
        """
        if self._inserted.load(state["methods"]):
            self._follow()
        weights = state["weights"]
        if [tuple(one.shape) for one in weights] != [tuple(one.shape) for one in self._parameters]:
            raise ValueError("the state is of a training of something else")
        with torch.no_grad():
            for parameter, values in zip(self._parameters, weights, strict=True):
                parameter.copy_(values)
        self._optimizer.load_state_dict(state["optimizer"])
        states: dict[Any, dict[str, Any]] = self._optimizer.state
        for key, own in states.items():
            if not isinstance(key, torch.Tensor):  # torch moves only what it finds by parameter; LoRA-FA goes by name
                own.update({name: _on(self._device, value) for name, value in own.items()})
        self._schedule.load_state_dict(dict(state["schedule"]))
        if self._policy is not None:
            self._policy.load(state["policy"])
        self.meter.load(state["meter"])
        self._position = int(state["step"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self._device)

    def _follow(self) -> None:
        """Take note of parameters that a method let come or go."""
        self._parameters = self._inserted.trainable()
        self._trained = frozenset(id(parameter) for parameter in self._parameters)
        extend(self._schedule, self._optimizer, self._spec, self.steps, self._done)

    def _started(self, policy: Policy | None, seed: int) -> RunningPolicy | None:
        if policy is None or not self.gates.layers:  # a pruning may have taken every module away
            return None
        context = Context(
            base=self._inserted.base,
            layout=self._inserted.layout,
            gates=self.gates,
            settings=policy.settings,
            seed=seed,
            steps=self.steps,
            batches=self._batches,
            optimizer=self._optimizer,
            probe=self._probe,
            gradient_norms=self._gradient_norms,
        )
        return POLICIES[policy.name].start(context)

    def _training_mode(self) -> None:
        inserted, checkpointing = self._inserted, self._spec.gradient_checkpointing
        training_mode(self._model, inserted.base, inserted.layout, self._trained, checkpointing=checkpointing)

    def _probe(self, batches: Sequence[Batch]) -> float:
        """Mean loss per row in evaluation mode, without gradients."""
        self._model.eval()
        total = 0.0
        with torch.no_grad():
            for batch in batches:
                with self.meter.aside(batch_load(batch)):
                    total += self._loss(batch).item() * batch.rows
        self._training_mode()
        return total / sum(batch.rows for batch in batches)

    def _gradient_norms(self, batches: Sequence[Batch]) -> list[float]:
        """Norm of the gradient of every parameter in evaluation mode; leaves no gradients."""
        self._model.eval()
        total = sum(batch.rows for batch in batches)
        for place, batch in enumerate(batches):
            # A backward pass counts for more than the forward pass of a probe, and one beside the gradients of those
            # before it for more than the first.
            with self.meter.aside(batch_load(batch) * (1 + len(self.gates.layers)) * (1.25 if place else 1.0)):
                loss = self._loss(batch) * (batch.rows / total)
                if loss.requires_grad:
                    loss.backward()
                del loss
        norms = [0.0 if part.grad is None else float(part.grad.norm()) for part in self._parameters]
        for part in self._parameters:
            part.grad = None
        self._training_mode()
        return norms

    def _loss(self, batch: Batch) -> torch.Tensor:
        inputs = moved(batch, self._device)
        self.meter.add(inputs.values())
        with autocast(self._device, self._dtype):
            loss: torch.Tensor = self._model(**inputs).loss
        return loss

    def _of(self, number: int) -> Sequence[Batch]:
        return self._batches[number * self._accumulate : (number + 1) * self._accumulate]

    def _step(self, number: int) -> tuple[float, int]:
        total = 0.0
        load: Load | None = None
        if self._policy is not None:
            self._policy.before_step(number)
            load = (self._sizes[number] * self._policy.weight(), len(self._optimizer.state))
        elif self._inserted.grows:
            load = (len(self._optimizer.state), self._sizes[number])
        with self.meter.step(number, load):
            for batch in self._of(number):
                loss = self._loss(batch) / self._accumulate
                value = loss.item()
                if not math.isfinite(value):
                    at = f"{self._done + number + 1} of {self._planned}"
                    raise NotFiniteError(f"the training loss is {value} in step {at}")
                loss.backward()
                total += value
                del loss
            self._inserted.before_update()
            if self._spec.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self._spec.clip_norm)
            self._optimizer.step()
            self._schedule.step()
            if self._inserted.after_step(self._done + number + 1):
                self._follow()
            self._optimizer.zero_grad(set_to_none=True)
        return total, sum(batch.tokens for batch in self._of(number))


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
