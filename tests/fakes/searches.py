"""A toy search without a model: its space, sampler, objectives and run record."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from autopeft.cluster.admission import Admission
from autopeft.cluster.campaign import Campaign
from autopeft.cluster.stopping import EarlyStopping
from autopeft.domain.budget import Budget
from autopeft.domain.candidate import Candidate, Insertion, Setting
from autopeft.domain.events import OnEvent, ignore
from autopeft.domain.layout import LayerLayout, ModelLayout, ModuleLayout, Role
from autopeft.domain.objective import Objective
from autopeft.domain.ports import Proposal, Resources, RunStore, Sampler
from autopeft.domain.results import Provenance, RunRecord, ScoredTrial, TaskInfo
from autopeft.domain.space import ChoiceDomain, FloatDomain, IntDomain, Parameter
from autopeft.domain.spec import SearchSpec
from autopeft.plugins import OBJECTIVES, load


class ToySpace:
    """A rank, a learning rate, and one of two layers."""

    name = "toy"
    parameters = (
        Parameter(name="rank", domain=IntDomain(low=1, high=64, log=True)),
        Parameter(name="learning_rate", domain=FloatDomain(low=1e-5, high=1e-2, log=True)),
        Parameter(name="layer", domain=ChoiceDomain(values=(0, 1))),
    )

    def resolve(self, values: Mapping[str, Setting]) -> Candidate:
        insertion = Insertion(
            method="lora",
            layers=(int(values["layer"]),),
            modules=("attention.query",),
            settings={"rank": int(values["rank"])},
        )
        return Candidate(insertions=(insertion,), learning_rate=float(values["learning_rate"]))

    def size(self) -> int | None:
        return None


class ToySampler:
    """Random and pure: the proposal is a function of seed and number alone; `size` ends the space."""

    def __init__(self, seed: int = 0, size: int | None = None) -> None:
        self._seed = seed
        self._size = size
        self.told: list[ScoredTrial] = []
        self.replayed: list[ScoredTrial] = []

    def ask(self, number: int) -> Proposal | None:
        if self._size is not None and number >= self._size:
            return None
        draw = random.Random(f"{self._seed}/{number}")
        values: dict[str, Setting] = {
            "rank": draw.randint(1, 64),
            "learning_rate": 10 ** draw.uniform(-5, -2),
            "layer": draw.randint(0, 1),
        }
        return Proposal(values, ToySpace().resolve(values), {})

    def tell(self, scored: ScoredTrial) -> None:
        self.told.append(scored)

    def replay(self, history: Sequence[ScoredTrial]) -> None:
        self.replayed = list(history)


def toy_objectives(*names: str) -> tuple[Objective, ...]:
    """The named objectives, or accuracy and memory."""
    return tuple(load(OBJECTIVES, name, "objectives") for name in names or ("accuracy", "train_peak_bytes"))


def toy_layout() -> ModelLayout:
    """Two layers with a query module each."""
    layers = tuple(
        LayerLayout(
            index=index,
            path=f"layers.{index}",
            modules=(ModuleLayout(role=Role.QUERY, path=f"layers.{index}.query", in_features=8, out_features=8),),
        )
        for index in range(2)
    )
    return ModelLayout(
        model_type="toy",
        hidden_size=8,
        heads=2,
        kv_heads=2,
        layers=layers,
        head_paths=("classifier",),
        parameters=1000,
        weights_bytes=4000,
    )


def toy_record(name: str = "toy", budget: str = "12", seed: int = 0, retries: int = 2) -> RunRecord:
    """The record of a toy search."""
    return RunRecord(
        name=name,
        spec=SearchSpec(name=name, space="toy", seed=seed, budget=Budget.parse(budget), retries=retries),
        layout=toy_layout(),
        task=TaskInfo(
            kind="classification",
            labels=("a", "b"),
            metric="accuracy",
            metrics=("accuracy",),
            rows={"train": 10, "validation": 10},
            majority_share=0.5,
        ),
        provenance=Provenance(versions={}, machine="toy", data_fingerprint="0" * 16, model_fingerprint="0" * 16),
        created_at=1.0,
    )


def toy_campaign(
    store: RunStore,
    folder: Path,
    *,
    sampler: Sampler | None = None,
    objectives: tuple[Objective, ...] | None = None,
    workers: int = 1,
    gpus: float = 0.0,
    max_failure_share: float = 1.0,
    keep_adapters: str = "front",
    budget: Budget | None = None,
    admission: Admission | None = None,
    stopping: EarlyStopping | None = None,
    on_event: OnEvent = ignore,
) -> Campaign:
    """A campaign on the toy search."""
    return Campaign(
        store,
        sampler or ToySampler(),
        objectives or toy_objectives(),
        artefacts=folder / "artefacts",
        resources=Resources(workers=workers, cpus_per_worker=1, gpus_per_worker=gpus),
        seed=0,
        max_failure_share=max_failure_share,
        keep_adapters=keep_adapters,
        budget=budget,
        admission=admission,
        stopping=stopping,
        on_event=on_event,
    )
