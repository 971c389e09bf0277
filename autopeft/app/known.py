"""What is known of a candidate before it trains, for samplers that use it."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.cluster.admission import Admission
from autopeft.domain.candidate import Candidate
from autopeft.domain.layout import ModelLayout
from autopeft.domain.ports import Known
from autopeft.domain.work import relative_work
from autopeft.evaluate.methods import METHODS


@dataclass(frozen=True)
class KnownFromLayout:
    """Implements `autopeft.domain.ports.KnownObjectives` from closed forms over the model's layout and from a forecast.

    The trainable parameters; and the peak of training where an admission foretells it, as the forecast says it: what an
    admission learns of the forecast's error changes while a search runs, and what is known must not. With pruning
    neither is said: parameters are known only after the estimation, and each forecast costs a trace. The seconds are
    relative ones, by the depth of the backward pass (`domain.work`): what was measured would differ from run to run.
    """

    layout: ModelLayout
    admission: Admission | None = None

    def __call__(self, candidate: Candidate) -> Known | None:
        work = relative_work(candidate, len(self.layout.layers))
        if candidate.pruning is not None or any(one.method not in METHODS for one in candidate.insertions):
            return Known(seconds=work)
        inserted = sum(METHODS[one.method].trainable(one, self.layout) for one in candidate.insertions)
        values = {"trainable_parameters": float(inserted + self.layout.head_parameters)}
        if self.admission is not None:
            foretold = self.admission.foretell(candidate)
            if foretold.peak is not None:
                values["train_peak_bytes"] = float(foretold.peak.live_bytes)
            if foretold.elsewhere is not None:
                values["predicted_peak_bytes"] = float(foretold.elsewhere.live_bytes)
        return Known(values, seconds=work)
