"""From a spec to everything a search needs, with every mistake found before the first trial."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from autopeft import plugins
from autopeft.app.objectives import ELSEWHERE, default_objectives, load_objectives
from autopeft.cluster.admission import Admission, Limits
from autopeft.domain.errors import Problem, UserError, unknown
from autopeft.domain.layout import TaskName
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory
from autopeft.domain.objective import Objective
from autopeft.domain.ports import EvaluatorRef, MemoryForecast, Resources
from autopeft.domain.results import Provenance, RunRecord, TaskInfo
from autopeft.domain.spec import ResourceSpec, SearchSpec
from autopeft.evaluate.devices import worker_bytes
from autopeft.evaluate.inspection import DeviceFacts, Inspection, devices, inspect_run
from autopeft.evaluate.memory.elsewhere import open_elsewhere
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.evaluate.train import planned_steps
from autopeft.search import SAMPLERS
from autopeft.spaces.binding import BoundSpace, bind
from autopeft.spaces.file import SearchSpaceFile
from autopeft.spaces.library import load_space

VERSIONED = ("autopeft", "torch", "transformers", "peft", "optuna", "ray", "numpy", "datasets", "scikit-learn")

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """A search that can start."""

    spec: SearchSpec
    inspection: Inspection
    objectives: tuple[Objective, ...]
    space: BoundSpace
    resources: Resources
    notices: tuple[str, ...]
    device_bytes: int | None = None
    """What a worker's allocator may hold of its GPU; None without one, or where it is on another machine."""
    elsewhere: MemoryForecast | None = None
    """Foretells candidates at the size that `predict_for` names."""

    def record(self) -> RunRecord:
        """The row that the store keeps of it."""
        return RunRecord(
            name=self.spec.run_name,
            spec=self.spec,
            layout=self.inspection.layout,
            task=self.inspection.task,
            provenance=Provenance(
                versions=versions(),
                machine=machine(devices()),
                data_fingerprint=self.inspection.data_fingerprint,
                model_fingerprint=self.inspection.model_fingerprint,
            ),
            created_at=time.time(),
        )

    def space_as_written(self) -> dict[str, Any]:
        """The space's file as values that read back as the same space."""
        return written(self.space.file)

    def admission(self, say: Callable[[str], None]) -> Admission:
        """What foretells and refuses candidates; `say` is told what a person should know. To be made once."""
        opening, target = self.inspection.open_forecast, "cuda" if self.resources.gpus_per_worker else "cpu"
        limit = self.spec.max_memory
        return Admission(
            None if opening is None else partial(opening, target),
            limits=Limits(None if limit is None else int(limit), self.device_bytes),
            elsewhere=self.elsewhere,
            say=say,
        )

    def evaluator(self) -> EvaluatorRef:
        """How a worker builds its evaluator."""
        return evaluator_of(self.spec, self.resources)


def written(space: SearchSpaceFile) -> dict[str, Any]:
    """A space as values that read back as the same space; without its first guesses, which change no candidate."""
    return space.model_dump(mode="json", exclude_unset=True, exclude={"first"})


def evaluator_of(spec: SearchSpec, resources: Resources) -> EvaluatorRef:
    """The evaluator that really trains; on a GPU only where its workers have a share of one."""
    return EvaluatorRef(
        target="autopeft.evaluate.pipeline:open_evaluator",
        arguments={
            "spec": spec.model_dump(mode="json"),
            "threads": resources.threads,
            "device": "auto" if resources.gpus_per_worker else "cpu",
            "gpu_share": resources.gpus_per_worker,
        },
    )


def make_plan(spec: SearchSpec, space_from: Path | None = None) -> Plan:
    """Look everything up that the spec names and check that it fits together.

    Args:
        spec: What to search.
        space_from: A file that takes the place of `spec.space`: a run's own copy of its space.

    Raises:
        UserError: with every mistake that was found.
    """
    problems = _Collected()
    named = [problems.of(partial(plugins.load, plugins.OBJECTIVES, name, "objectives")) for name in spec.objectives]
    if spec.sampler.name not in SAMPLERS:
        problems.add(unknown("sampler", spec.sampler.name, SAMPLERS))
    space_file = problems.of(lambda: load_space(str(space_from) if space_from else spec.space))
    facts = devices()
    resources = problems.of(lambda: decide_resources(spec.resources, facts))
    inspection = problems.of(lambda: inspect_run(spec))
    problems.add(*_budget_problems(spec, facts))
    if inspection is None:
        raise UserError(*problems.found)
    problems.add(*_memory_problems(spec, inspection))
    space = (
        problems.of(lambda: bind(space_file, inspection.layout, METHODS, POLICIES, CRITERIA)) if space_file else None
    )
    problems.add(*_step_problems(spec, inspection, space))
    objectives = tuple(one for one in named if one) or default_objectives(inspection.task)
    elsewhere = problems.of(lambda: _elsewhere(spec, inspection))
    if spec.predict_for is not None and ELSEWHERE not in spec.objectives:
        objectives = (*objectives, *load_objectives((ELSEWHERE,)))
    problems.add(*_objective_problems(objectives, inspection.task, spec))
    if problems.found or space is None or resources is None:
        raise UserError(*problems.found)
    notices = [*inspection.notices, *space.notices]
    if spec.predict_for is not None:
        there = f"each candidate is carried over to {spec.predict_for}"
        notices.append(f"The objective {ELSEWHERE} is predicted and never measured: {there}.")
    return Plan(
        spec, inspection, objectives, space, resources, tuple(notices), device_bytes(resources, facts), elsewhere
    )


def device_bytes(resources: Resources, facts: DeviceFacts) -> int | None:
    """What a worker's allocator may hold of the smallest of this machine's GPUs; None where its GPU is not here."""
    if not resources.gpus_per_worker or not facts.gpu_memory_bytes or resources.ray_address is not None:
        return None
    return worker_bytes(min(facts.gpu_memory_bytes), resources.gpus_per_worker)


def _elsewhere(spec: SearchSpec, inspection: Inspection) -> MemoryForecast | None:
    if spec.predict_for is None:
        return None
    return open_elsewhere(spec.predict_for, inspection.layout, inspection.task, spec.training, spec.seed)


def decide_resources(asked: ResourceSpec, facts: DeviceFacts) -> Resources:
    """Fill in what the spec leaves open.

    One worker per GPU, or as many as asked for, which then share the GPUs. Without one, as many workers as there are
    cores, at most four, which share the cores.

    Raises:
        UserError: where a GPU is asked for and this machine, which is to run the search, has none, or the workers
            asked for do not fit.
    """
    here = asked.ray_address is None
    if asked.gpus_per_worker and not facts.gpus and here:
        raise UserError(
            Problem(
                "resources.gpus_per_worker",
                f"{asked.gpus_per_worker:g} GPUs were asked for and torch sees none",
                "0 on this machine",
                "See `autopeft doctor`, or name a cluster with --ray-address.",
            )
        )
    if asked.runner == "local" and (asked.workers or 1) > 1:
        raise UserError(
            Problem("resources.workers", "the local runner has one worker", "1", "Use --runner ray for more.")
        )
    gpus = asked.gpus_per_worker
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise UserError(
            Problem(
                "resources.gpus_per_worker", f"{gpus:g} is not a share of one GPU", "a whole number, or less than 1"
            )
        )
    if gpus is None:
        per_gpu = -(-(asked.workers or 1) // facts.gpus) if facts.gpus else 1
        gpus = 1.0 / per_gpu if facts.gpus else 0.0
    room = _room(gpus, facts) if here else None
    usual = max(1, min(4, facts.cores)) if room is None else max(1, room)
    workers = asked.workers or (1 if asked.runner == "local" else usual)
    if room is not None and workers > room:
        raise UserError(
            Problem(
                "resources.workers",
                f"{workers} workers of {gpus:g} GPUs each do not fit on {facts.gpus} GPUs",
                f"up to {room}",
                "Lower --workers, or give each a smaller --gpus-per-worker.",
            )
        )
    cpus = asked.cpus_per_worker if asked.cpus_per_worker is not None else max(1, facts.cores // workers)
    return Resources(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus, ray_address=asked.ray_address)


def _room(gpus: float, facts: DeviceFacts) -> int | None:
    """How many workers with this share this machine's GPUs hold; None where they need no GPU."""
    if gpus >= 1:
        return int(facts.gpus // gpus)
    if gpus > 0:
        # A hair more, since three thirds are less than one in floating point.
        return facts.gpus * int(1 / gpus + 1e-9)
    return None


def versions() -> dict[str, str]:
    """Installed versions of Python and the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine(facts: DeviceFacts) -> str:
    """Processor, cores and GPUs in one line."""
    parts = [f"{platform.machine()}, {facts.cores} cores, {facts.memory_bytes / 2**30:.0f} GiB", *facts.gpu_names]
    return "; ".join(parts)


def _budget_problems(spec: SearchSpec, facts: DeviceFacts) -> list[Problem]:
    without_gpu = not facts.gpus and spec.resources.ray_address is None
    if spec.budget.gpu_seconds is None or not (without_gpu or spec.resources.gpus_per_worker == 0):
        return []
    return [
        Problem(
            "budget",
            f"'{spec.budget}' limits GPU-hours, and the workers have no GPU, so it would never run out",
            "trials or hours",
            "For example: --budget 2h. See `autopeft doctor` for GPUs.",
        )
    ]


def _memory_problems(spec: SearchSpec, inspection: Inspection) -> list[Problem]:
    base = inspection.layout.weights_bytes
    if spec.max_memory is None or spec.max_memory > base:
        return []
    return [
        Problem(
            "max_memory",
            f"{int(spec.max_memory) / 2**20:.0f} MiB is less than the base model alone needs",
            f"more than {base / 2**20:.0f} MiB",
            "Raise --max-memory or choose a smaller --model.",
        )
    ]


def _step_problems(spec: SearchSpec, inspection: Inspection, space: BoundSpace | None) -> list[Problem]:
    """A training of one step, where candidates may prune: nothing would be left of it after the estimation."""
    batches = -(-inspection.task.rows["train"] // spec.training.batch_size)
    if space is None or space.pruning is None or not space.pruning.kinds:
        return []
    if planned_steps(spec.training, batches) > 1:
        return []
    return [
        Problem(
            "training",
            "a trial has one optimiser step, and candidates that prune need one to estimate and one to train",
            "2 steps or more",
            "Raise --steps or --epochs, or search a space without pruning.",
        )
    ]


def _objective_problems(objectives: tuple[Objective, ...], task: TaskInfo, spec: SearchSpec) -> list[Problem]:
    """Objectives that no trial of this task can have: scored on a trial that measured everything, they are NaN."""
    if spec.predict_for is None and any(one.name == ELSEWHERE for one in objectives):
        step = "For example: --predict-for model=meta-llama/Llama-3.2-3B,seq=768,batch=4,dtype=bf16"
        return [Problem("objectives", f"'{ELSEWHERE}' is asked for, and not for what", "", step)]
    peak = PeakMemory(live_bytes=1, source=MemorySource.PREDICTED)
    full = Measurements(
        quality=dict.fromkeys(task.metrics, 0.5),
        train_s=1.0,
        train_tokens=1,
        evaluate_s=1.0,
        latency_s=1.0,
        trainable_parameters=1,
        head_parameters=1,
        total_parameters=1,
        adapter_bytes=1,
        train_peak=peak,
        infer_peak=peak,
        elsewhere_peak=peak,
    )
    return [
        Problem(
            "objectives",
            f"'{objective.name}' cannot be measured on a {task.kind} task",
            f"{', '.join(task.metrics)} and what does not depend on the task",
            "Ask for it with --metric exact_match: generating answers costs time."
            if objective.name == "exact_match" and task.name is TaskName.CAUSAL_LM
            else "See `autopeft objectives`.",
        )
        for objective in objectives
        if objective(full) != objective(full)
    ]


class _Collected:
    """Problems of several steps that do not depend on each other."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, *problems: Problem) -> None:
        self.found.extend(problems)

    def of(self, step: Callable[[], T]) -> T | None:
        """What the step returns, or None where it found mistakes."""
        try:
            return step()
        except UserError as error:
            self.found.extend(error.problems)
            return None
