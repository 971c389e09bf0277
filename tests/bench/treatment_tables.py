"""The tables of `treatments.py`, as Markdown, from its JSON lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Record = dict[str, Any]
PLAIN = "plain"
NONE = "-"
_MIB = 1 << 20
Key = tuple[str, str, int]
"""Set, variant, seed."""


def tables(records: Sequence[Record], variants: Sequence[str]) -> str:
    """Scores and costs of every set, and the paired differences over all of them."""
    trials = {_key(one): one for one in records if one["kind"] == "trial"}
    timings: dict[Key, Record] = {}
    for one in records:
        if one["kind"] == "timing" and PLAIN in one["runs"]:
            for variant, run in one["runs"].items():
                timings[one["set"], variant, one["seed"]] = {**run, "plain": one["runs"][PLAIN]}
    parts = []
    for name in dict.fromkeys(key[0] for key in trials):
        there = [variant for variant in variants if any(key[:2] == (name, variant) for key in trials)]
        parts += [f"### {name}", scores(trials, name, there), costs(trials, timings, name, there)]
    return "\n\n".join([*parts, "### All sets", overall(trials, variants)])


def scores(trials: dict[Key, Record], name: str, variants: Sequence[str]) -> str:
    """Accuracy in per cent, and differences from plain LoRA of the same seed in points; mean ± standard deviation."""
    rows = []
    for variant in variants:
        mine = _of(trials, name, variant)
        row = [variant, str(len(mine))]
        for split in ("validation", "test"):
            row += [spread([_accuracy(one, split) for one in mine]), spread(_gains(trials, name, variant, split))]
        loss = spread([one["measurements"]["rungs"][-1]["train_loss"] for one in mine], 3)
        rows.append([*row, loss])
    return table(["variant", "seeds", "validation", "Δ", "test", "Δ", "training loss"], rows)


def costs(trials: dict[Key, Record], timings: dict[Key, Record], name: str, variants: Sequence[str]) -> str:
    """Parameters, memory in MiB as means over seeds, and times relative to plain LoRA."""
    rows = []
    for variant in variants:
        mine = [one["measurements"] for one in _of(trials, name, variant)]
        timed = [value for key, value in timings.items() if key[:2] == (name, variant)]
        steps = mine[0]["steps"]
        kept = [one["kept_parameters"] / one["total_parameters"] for one in mine if one["kept_parameters"]]
        own = [one["trainable_parameters"] - one["head_parameters"] for one in mine]
        rows.append(
            [
                variant,
                f"{statistics.fmean(own):,.0f}",
                f"{statistics.fmean(kept):.1%}" if kept else "100%",
                _mib(one["estimation_peak"] and one["estimation_peak"]["live_bytes"] for one in mine),
                _mib(one["train_peak"]["live_bytes"] for one in mine),
                _mib(one["train_mean_bytes"] for one in mine),
                _mib(one["infer_peak"]["live_bytes"] for one in mine),
                spread([_estimating(one) for one in timed if one["estimation_steps"]], 2),
                spread([_stepping(one) for one in timed], 2),
                spread([_whole(one, steps) for one in timed], 2),
                spread([_ratio(one["predict_s"], one["plain"]["predict_s"]) for one in timed], 2),
            ]
        )
    memory = ["estimation peak", "training peak", "mean of step peaks", "inference peak"]
    times = ["estimation step", "step", "whole training", "prediction"]
    return table(["variant", "PEFT parameters", "model kept", *memory, *times], rows)


def overall(trials: dict[Key, Record], variants: Sequence[str]) -> str:
    """Differences from plain LoRA with set and seed paired: mean, standard error, how often no worse."""
    rows = []
    for variant in variants:
        row = [variant]
        for split in ("validation", "test"):
            gains = [
                gain
                for name in dict.fromkeys(key[0] for key in trials)
                for gain in _gains(trials, name, variant, split)
            ]
            if not gains or variant == PLAIN:
                break
            error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
            row += [
                f"{statistics.fmean(gains):+.2f} ± {error:.2f}",
                f"{sum(one >= 0 for one in gains)} of {len(gains)}",
            ]
        if len(row) > 1:
            rows.append(row)
    return table(["variant", "validation Δ ± standard error", "no worse", "test Δ ± standard error", "no worse"], rows)


def _key(one: Record) -> Key:
    return one["set"], one["variant"], one["seed"]


def _of(trials: dict[Key, Record], name: str, variant: str) -> list[Record]:
    return [one for key, one in sorted(trials.items()) if key[:2] == (name, variant)]


def _accuracy(one: Record, split: str) -> float:
    found = one["test"] if split == "test" else one["measurements"]["quality"]
    return 100 * float(found["accuracy"])


def _gains(trials: dict[Key, Record], name: str, variant: str, split: str) -> list[float]:
    """Points above plain LoRA of the same seed."""
    return [
        _accuracy(one, split) - _accuracy(trials[name, PLAIN, one["seed"]], split)
        for one in _of(trials, name, variant)
        if (name, PLAIN, one["seed"]) in trials
    ]


def _ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """Median over steps of seconds by seconds of the other on the same batch."""
    return statistics.median(one / two for one, two in zip(mine, other, strict=True))


def _working(run: Record, chosen: Callable[[Record], slice]) -> list[float]:
    """Seconds of some steps without what a policy does before them."""
    both = zip(run["step_s"], run["own_s"], strict=True)
    return [seconds - own for seconds, own in both][chosen(run)]


def _estimating(run: Record) -> float:
    phase = slice(1, run["estimation_steps"])
    return _ratio(_working(run, lambda _: phase), _working(run["plain"], lambda _: phase))


def _stepping(run: Record) -> float:
    """The first step of a phase makes the optimiser's state and is left out."""
    phase = slice(run["estimation_steps"] + 1, None)
    return _ratio(_working(run, lambda _: phase), _working(run["plain"], lambda _: phase))


def _whole(run: Record, steps: int) -> float:
    """Seconds of a training of so many steps, relative to plain: both phases, the pruning, and the policy's own work.

    What a policy did again and again counts per step, what it did once counts once.
    """
    step = statistics.median(run["plain"]["step_s"])
    first = round(run["estimation_steps"] / len(run["step_s"]) * steps)
    own = [seconds for seconds in run["own_s"] if seconds > step / 2]
    extra = run["pruning_s"] or 0.0
    if len(own) > 1:
        extra += sum(own) / len(own) * (steps // (len(run["own_s"]) // len(own)))
    else:
        extra += sum(own)
    estimation = first * _estimating(run) if first else 0.0
    return (estimation + (steps - first) * _stepping(run) + extra / step) / steps


def spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return NONE
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}"


def _mib(values: Iterable[int | None]) -> str:
    found = [value for value in values if value]
    return f"{statistics.fmean(found) / _MIB:.1f}" if found else NONE


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
