"""Made-up tasks over the real search spaces: quality and memory of any candidate by a formula, for judging samplers.

Quality saturates in the size of the update, layer by layer; layers, modules, methods and sizes count differently from
task to task; the best learning rate moves with method and size, and far from it training fails; pruning and policies
cost a little. Memory is a sum of what a training holds. Nothing here was fitted to anything: the numbers of a task are
drawn from its seed.
"""

import math
from functools import cached_property

import numpy as np

from autopeft.domain import pareto
from autopeft.domain.objective import Direction, Objective, Unit
from autopeft.domain.ports import Known
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.search.front.views import SpaceView
from autopeft.spaces.binding import bind
from autopeft.spaces.library import load_space
from tests.unit.space_layouts import BERT, layout

OBJECTIVES = (
    Objective("accuracy", Direction.MAXIMIZE, Unit.FRACTION, "", lambda measured: math.nan, worst=0.0),
    Objective("train_peak_bytes", Direction.MINIMIZE, Unit.BYTES, "", lambda measured: math.nan),
)
FROZEN = 90e6
"""Bytes of the frozen weights."""


class Task:
    """One space with one made-up truth."""

    def __init__(self, space, seed, depth=6, noise=0.01):
        model = layout(BERT, depth, head_dim=32)
        whole = sum(rows * columns for rows, columns in BERT.values())
        layers = tuple(
            one.model_copy(update={"parameters": whole, "attention": f"{one.path}.attention"}) for one in model.layers
        )
        model = model.model_copy(update={"layers": layers})
        self.space = bind(load_space(space), model, METHODS, POLICIES, CRITERIA)
        self.depth, self.noise, self.seed, self.model = depth, noise, seed, model
        rng = np.random.default_rng([seed, 7])
        self.layer = rng.gamma(2.0, 1.0, depth) * np.linspace(0.5, 1.5, depth)
        self.layer /= self.layer.sum()
        self.role = dict(zip(sorted(BERT), rng.uniform(0.4, 1.0, len(BERT)), strict=True))
        names = sorted(METHODS)
        self.method = dict(zip(names, rng.uniform(0.75, 1.0, len(names)), strict=True))
        self.best_rate = dict(zip(names, rng.uniform(math.log(5e-4), math.log(4e-3), len(names)), strict=True))
        self.by_size = rng.uniform(0.0, 0.25)
        self.width = rng.uniform(0.8, 1.5)
        self.chance, self.top = rng.uniform(0.1, 0.5), rng.uniform(0.75, 0.95)
        self.steep, self.overfit = rng.uniform(2.0, 4.0), rng.uniform(0.0, 0.06)
        self.taxes = dict(zip(("ist", "random-sparse", "lisa", "dropbp"), rng.uniform(0.0, 0.06, 4), strict=True))
        self.pruned = rng.uniform(0.05, 0.3)

    def quality(self, candidate):
        """Accuracy without noise."""
        gain, size, rate, weight = 0.0, 0.0, 0.0, 1e-9
        for insertion in candidate.insertions:
            settings = insertion.settings
            knob = float(settings.get("rank", settings.get("size", settings.get("length", 8))))
            own = self.method[insertion.method]
            roles = [self.role[role] for role in insertion.modules] or [0.7]
            reach = 1.0 - math.exp(-(0.35 + 0.25 * math.log2(1 + knob)) * sum(roles) / 2.0)
            reach *= 1.0 - 0.4 * abs(float(settings.get("dropout", 0.0)) - 0.04)
            share = float(sum(self.layer[list(insertion.layers)]))
            gain += own * reach * share
            size += math.log2(1 + knob) * len(insertion.layers) / self.depth
            strength = math.log(float(settings.get("alpha_ratio", settings.get("scale", 1.0))))
            rate += share * (self.best_rate[insertion.method] - self.by_size * math.log2(knob) - 0.3 * strength)
            weight += share
        off = (math.log(candidate.learning_rate) - rate / weight) / self.width if weight > 1e-6 else 0.0
        gain *= math.exp(-0.5 * off**2) if off < 1.2 else 0.3 * math.exp(-off)
        score = 1.0 - math.exp(-self.steep * gain)
        score -= self.overfit * max(0.0, size - 4.0) / 4.0
        for kind, name, settings in candidate.treatments():
            if kind == "policy":
                kept = float(settings.get("trained", settings.get("drop", 0.5)) or 0.5)
                score -= self.taxes.get(name, 0.02) * (1.2 - kept)
            else:
                score -= self.pruned * float(settings.get("heads", 0.0)) ** 2 + 0.02 * float(settings.get("ranks", 0.0))
        return self.chance + (self.top - self.chance) * max(0.0, score)

    def memory(self, candidate):
        """Bytes at the peak of training."""
        layers = candidate.layers()
        reached = self.depth - min(layers) if layers else 0
        kept = 1.0
        for kind, name, settings in candidate.treatments():
            if kind == "policy":
                kept *= 0.8 if name in ("lisa", "dropbp") else 0.9
            else:
                kept *= 1.0 - 0.7 * float(settings.get("heads", 0.0))
        held = reached * 22e6 + sum(
            len(one.layers) * (len(one.modules) or 1) * (3e6 + 4e3 * float(one.settings.get("length", 0)))
            for one in candidate.insertions
        )
        return FROZEN + kept * (8e6 + held) + 16.0 * self.trainable(candidate)

    def trainable(self, candidate):
        return sum(METHODS[one.method].trainable(one, self.model) for one in candidate.insertions) + 3000

    def known(self, candidate):
        return Known(
            {"train_peak_bytes": self.memory(candidate), "trainable_parameters": float(self.trainable(candidate))}
        )

    def observed(self, candidate, seed):
        """What a trial would tell."""
        draw = np.random.default_rng([self.seed, seed, int(candidate.digest, 16) % 2**31]).normal()
        return self.quality(candidate) + self.noise * float(draw), self.memory(candidate)

    def losses(self, candidate):
        """What counts: lost accuracy, and the logarithm of the bytes above the frozen weights."""
        return -self.quality(candidate), math.log(self.memory(candidate) - FROZEN)

    @cached_property
    def reference(self):
        """The reference point, and the hypervolume of the best front that draws and changes found."""
        view, rng = SpaceView(self.space, OBJECTIVES, None), np.random.default_rng(self.seed)
        candidates = {}

        def take(point):
            values = {} if point is None else view._settings(point.params)
            candidate = self.space.resolve(values) if values else None
            if candidate is not None and candidate.digest not in candidates:
                candidates[candidate.digest] = (point, np.array(self.losses(candidate)))

        for _ in range(1500):
            take(view.drawn(rng))
        losses = np.array([one for _, one in candidates.values()])
        corner = losses.max(axis=0) + 1e-9
        for _ in range(8):
            points = [point for point, _ in candidates.values()]
            losses = np.array([one for _, one in candidates.values()])
            front = np.flatnonzero(pareto.non_dominated(losses))
            for _ in range(max(1, 600 // len(front))):
                for index in front:
                    take(view.changed(points[index], rng))
        losses = np.array([one for _, one in candidates.values()])
        return corner, pareto.hypervolume(losses, corner)


def share(task, candidates):
    """Hypervolume of these candidates, without noise, as a share of the best known."""
    corner, best = task.reference
    return pareto.hypervolume(np.array([task.losses(one) for one in candidates]), corner) / best
