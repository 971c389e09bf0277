"""What a recorded table says of its configurations: the truth, what one training shows, and what it takes."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopeft.domain import pareto
from autopeft.domain.candidate import Candidate
from autopeft.domain.measurements import Measurements, MemorySource, PeakMemory, Rung
from autopeft.domain.objective import Direction, Objective, Unit, metric_score, or_nan
from autopeft.domain.ports import Known
from autopeft.domain.recording import RecordedTable, RecordedTraining
from autopeft.domain.trial import TrialStatus
from autopeft.domain.work import relative_work

MEMORY = "train_peak_bytes"


@dataclass(frozen=True)
class Truth:
    """A table as the referee of a replay.

    The truth of a configuration is its mean quality over all seeds, and its memory. A search is shown the training of
    one seed only. Time is the median over the seeds, since other work on the machine lengthens single trainings.
    """

    table: RecordedTable

    @property
    def configs(self) -> tuple[int, ...]:
        return tuple(self.table.trainings)

    @cached_property
    def objectives(self) -> tuple[Objective, Objective]:
        """Quality and training memory."""
        facts = self.table.facts
        direction = Direction.MAXIMIZE if facts.higher_is_better else Direction.MINIMIZE
        return (
            Objective(facts.metric, direction, Unit.FRACTION, "", metric_score(facts.metric), quality=True),
            Objective(
                MEMORY,
                Direction.MINIMIZE,
                Unit.BYTES,
                "",
                lambda found: or_nan(found.train_peak.live_bytes if found.train_peak else None),
            ),
        )

    def shown(self, config: int, seed: int) -> RecordedTraining:
        """The training that the search of this seed sees; the same whenever it asks."""
        trainings = self.table.trainings[config]
        return trainings[int(np.random.default_rng([seed, config]).integers(len(trainings)))]

    def losses(self, training: RecordedTraining) -> tuple[float, ...]:
        """Quality at each rung that was reached, as losses."""
        sign = self.objectives[0].sign
        return tuple(sign * rung.quality[self.table.facts.metric] for rung in training.rungs)

    def seconds(self, config: int, rung: int | None) -> float:
        """From the begin to a rung, or (None) to the end."""
        cpu = self.table.facts.clock == "cpu"
        found = []
        for one in self.table.trainings[config]:
            at = one if rung is None or rung >= len(one.rungs) else one.rungs[rung]
            found.append(at.cpu_s if cpu else at.wall_s)
        return statistics.median(found)

    def samples(self, training: RecordedTraining, rung: int | None) -> int:
        """Training rows until a rung, or (None) until the end."""
        if not training.rungs:
            return 0
        reached = training.rungs[-1 if rung is None else rung]
        return reached.step * self.table.facts.batch_rows

    def memory(self, config: int) -> int | None:
        """Bytes at the peak of training; None where no seed was trained so far."""
        return next((one.train_peak_bytes for one in self.table.trainings[config] if one.train_peak_bytes), None)

    def known(self, candidate: Candidate) -> Known | None:
        """What a forecast and closed forms tell of a candidate; here the table's own numbers stand for them.

        Seconds are as a search has them, by the depth of the backward pass, and not those of the table.
        """
        config = self._config_of.get(candidate.digest)
        memory = None if config is None else self.memory(config)
        if config is None or memory is None:
            return None
        values = {MEMORY: float(memory)}
        counted = self.table.trainings[config][0].trainable_parameters
        if counted is not None and candidate.pruning is None:
            values["trainable_parameters"] = float(counted)
        return Known(values, seconds=relative_work(candidate, self._depth))

    @cached_property
    def _depth(self) -> int:
        """Layers of the model, as far as a candidate reaches."""
        candidates = [trainings[0].candidate for trainings in self.table.trainings.values()]
        return 1 + max((layer for one in candidates for layer in one.layers()), default=0)

    @cached_property
    def _config_of(self) -> dict[str, int]:
        return {one[0].candidate.digest: config for config, one in self.table.trainings.items()}

    def measurements(self, training: RecordedTraining, reached: int) -> Measurements:
        """What the objectives are scored on, after so many rungs."""
        peak, rungs = training.train_peak_bytes, training.rungs[:reached]
        planned = training.planned_steps or (rungs[-1].step if rungs else 0)
        return Measurements(
            quality=rungs[-1].quality if rungs else {},
            rungs=tuple(
                Rung(
                    step=one.step,
                    planned_steps=planned,
                    quality=one.quality,
                    train_loss=one.train_loss,
                    train_s=one.train_s,
                )
                for one in rungs
            ),
            train_peak=None if peak is None else PeakMemory(live_bytes=peak, source=MemorySource.TRACKED),
            trainable_parameters=training.trainable_parameters,
        )

    @cached_property
    def _points(self) -> dict[int, tuple[float, float]]:
        """Mean loss and log bytes of the configurations that completed with every seed."""
        found = {}
        for config, trainings in self.table.trainings.items():
            memory = self.memory(config)
            if memory is None or any(one.status is not TrialStatus.COMPLETE for one in trainings):
                continue
            found[config] = (statistics.fmean(self.losses(one)[-1] for one in trainings), math.log(memory))
        return found

    @cached_property
    def _scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        points = np.array(list(self._points.values()))
        low, high = points.min(axis=0), points.max(axis=0)
        return low, np.where(high > low, high - low, 1.0)

    @cached_property
    def reference(self) -> float:
        """Hypervolume of the whole table, in the box between the best and the worst of each objective."""
        return self._volume(self._points)

    def share(self, configs: set[int]) -> float:
        """Hypervolume of the truth of these configurations, as a share of the whole table's."""
        known = {config: self._points[config] for config in configs if config in self._points}
        return self._volume(known) / self.reference if known and self.reference > 0 else 0.0

    def _volume(self, points: dict[int, tuple[float, float]]) -> float:
        low, span = self._scale
        return pareto.hypervolume((np.array(list(points.values())) - low) / span, np.ones(2))

    @property
    def complete(self) -> int:
        """Configurations that completed with every seed."""
        return len(self._points)
