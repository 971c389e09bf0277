"""Warm starts of replayed searches: an earlier search that saw a whole table."""

from __future__ import annotations

import math

import numpy as np

from autopeft.domain.pareto import non_dominated
from autopeft.domain.start import WARM_START, EarlierRun, EarlierTrial, Start, StartingPoint, most_of, order
from autopeft.domain.trial import TrialStatus
from autopeft.search.replay.truth import MEMORY, Truth

_OTHER_SEED = 10_000
"""An earlier search on the same table saw other trainings than this one, where there are several seeds."""


def start_from(truth: Truth, earlier: Truth, seed: int, trials: int | None = None, shuffled: bool = False) -> Start:
    """What a search on `truth` begins with where an earlier one saw one training of every configuration of a table.

    Args:
        truth: The table that is searched.
        earlier: The table of the earlier search; configurations that `truth` has not are left out.
        seed: Of the search; decides which trainings the earlier one saw, and the shuffle.
        trials: Budget of the search; None is the whole table.
        shuffled: Whether the earlier qualities are dealt out anew among its configurations, as if the labels of its
            task had been shuffled; memory stays.
    """
    own = {one[0].candidate.digest: one[0] for one in truth.table.trainings.values()}
    shown = [earlier.shown(config, seed + _OTHER_SEED) for config in earlier.configs]
    seen = [one for one in shown if one.status is TrialStatus.COMPLETE and one.train_peak_bytes]
    quality = earlier.objectives[0]
    values = [one.rungs[-1].quality[earlier.table.facts.metric] for one in seen]
    if shuffled:
        values = [values[place] for place in np.random.default_rng([seed, 5]).permutation(len(values))]
    found = [
        (own[one.candidate.digest], value, one.train_peak_bytes or 0)
        for one, value in zip(seen, values, strict=True)
        if one.candidate.digest in own
    ]
    if not found:
        return Start()
    losses = np.array([(quality.sign * value, math.log(memory)) for _, value, memory in found])
    front = np.flatnonzero(non_dominated(losses))
    points = tuple(
        StartingPoint(parameters=training.parameters, candidate=training.candidate, origin=f"{WARM_START} the table")
        for training, _, _ in (found[front[index]] for index in order(losses[front]))
    )
    run = EarlierRun(
        name="the table",
        quality=quality.name,
        maximised=quality.sign < 0,
        trials=tuple(
            EarlierTrial(parameters=training.parameters, values={quality.name: value, MEMORY: float(memory)})
            for training, value, memory in found
        ),
    )
    return Start(points=points, most=most_of(trials or len(truth.configs)), earlier=(run,))
