"""The tables of `treatment_causes.py`, as Markdown, from its JSON lines."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.treatment_tables import NONE, PLAIN, Record, spread, table

Key = tuple[str, str, int, float, str]
"""Set, variant, steps, rate, changed settings."""


def key_of(record: Record) -> Key:
    """What all seeds of one configuration have in common."""
    return (record["set"], record["variant"], record["steps"], record["rate"], json.dumps(record["changes"]))


def line(record: Record) -> str:
    """One finished training, shortly."""
    step, accuracy, loss = record["curve"][-1]
    changes = f" {record['changes']}" if record["changes"] else ""
    turn = record["turn"]
    pruned = f", pruning {turn['before']:.4f} -> {turn['after']:.4f}" if turn else ""
    about = f"{record['set']} seed {record['seed']} rate {record['rate']:g} {record['variant']}{changes}"
    return f"{about}: step {step}, {accuracy:.4f}, loss {loss:.3f}{pruned}, {record['cpu_s']:.0f} s"


def report(records: Sequence[Record]) -> str:
    """Scores, the turn of the phases, what masks agree on, and what IST's scores say."""
    groups: dict[Key, list[Record]] = {}
    for one in records:
        groups.setdefault(key_of(one), []).append(one)
    titles = {"Scores": scores, "Pruning step": turns, "Masks": masks, "IST": layers, "Curves": curves}
    return "\n\n".join(f"### {title}\n\n{make(groups)}" for title, make in titles.items())


def scores(groups: dict[Key, list[Record]]) -> str:
    """Accuracy in per cent, and points above plain LoRA of the same seed, steps and rate; mean ± deviation."""
    rows = []
    for key, mine in groups.items():
        name, _, steps, rate, _ = key
        plain = {one["seed"]: one for one in groups.get((name, PLAIN, steps, rate, "{}"), [])}
        row = _titles(key, mine)
        for found in (_validation, _test):
            tested = [one for one in mine if found(one) is not None]
            paired = [(one, plain[one["seed"]]) for one in tested if found(plain.get(one["seed"])) is not None]
            row.append(spread([100 * found(one) for one in tested]))
            row.append(spread([100 * (found(one) - found(other)) for one, other in paired]))
        rows.append([*row, spread([one["curve"][-1][2] for one in mine], 3), f"{mine[0]['parameters']:,}"])
    return table([*_HEAD, "validation", "Δ", "test", "Δ", "training loss", "PEFT parameters"], rows)


def _validation(record: Record | None) -> Any:
    return record and record["curve"][-1][1]


def _test(record: Record | None) -> Any:
    return record and record["test"]


def turns(groups: dict[Key, list[Record]]) -> str:
    """Validation accuracy in per cent at the end of the estimation, after the pruning step, and at the end."""
    rows = []
    for key, mine in groups.items():
        if mine[0]["turn"]:
            parts = [[100 * one["turn"][when] for one in mine] for when in ("before", "after")]
            parts.append([100 * one["curve"][-1][1] for one in mine])
            rows.append([*_titles(key, mine), *map(spread, parts)])
    return table([*_HEAD, "before", "after", "at the end"], rows)


def masks(groups: dict[Key, list[Record]]) -> str:
    """Spread of the masks, and the share of what one seed drops that another drops, too.

    By chance it is what two draws of as many in every layer have in common. Beside it the mean over layers of the rank
    correlation of the masks of two seeds.
    """
    rows = []
    for key, mine in groups.items():
        for part in ("heads", "ffn"):
            values = [[np.array(layer) for layer in one["turn"].get(part, ())] for one in mine]
            if not values or not values[0]:
                continue
            whole = [np.concatenate(one) for one in values]
            found = [spread([float(one.mean()) for one in whole], 3), spread([float(one.std()) for one in whole], 4)]
            found.append(spread([float(np.mean([layer.std() for layer in one])) for one in values], 4))
            pairs = list(itertools.combinations(range(len(mine)), 2))
            gone = [_gone(one["kept"][part], parts) for one, parts in zip(mine, values, strict=True)]
            if pairs and all(any(map(len, one)) for one in gone):
                found.append(spread([_common(gone[one], gone[two]) for one, two in pairs], 2))
                found.append(spread([_chance(gone[one], gone[two], values[0]) for one, two in pairs], 2))
                alike = [[_ranks(a, b) for a, b in zip(values[x], values[y], strict=True)] for x, y in pairs]
                found.append(spread([float(np.mean(one)) for one in alike], 2))
            rows.append([*_titles(key, mine), part, *found, *[NONE] * (6 - len(found))])
    head = ["mean", "deviation", "in a layer", "dropped by both", "by chance", "rank correlation"]
    return table([*_HEAD, "masks", *head], rows)


def layers(groups: dict[Key, list[Record]]) -> str:
    """Draws by the last scores, and how the scores agree with another seed's and with layers damped one by one."""
    rows = []
    for key, mine in groups.items():
        if not mine[0]["importance"]:
            continue
        last = [np.array(one["importance"][-1][1]) for one in mine]
        shares = [_shares(one) for one in last]
        even = [math.exp(-float((one * np.log(one)).sum())) for one in shares]
        row = [*_titles(key, mine), str(len(mine[0]["importance"])), spread([float(one.std()) for one in last], 3)]
        row += [f"{min(map(min, shares)):.3f} to {max(map(max, shares)):.3f}", spread(even, 2)]
        row.append(spread([_ranks(one, two) for one, two in itertools.combinations(last, 2)], 2))
        row.append(spread([_ranks(one, np.array(of["damped"])) for one, of in zip(last, mine, strict=True)], 2))
        rows.append(row)
    head = ["updates", "deviation of scores", "share of draws", "layers in effect", "seeds agree", "damping agrees"]
    return table([*_HEAD, *head], rows)


def curves(groups: dict[Key, list[Record]]) -> str:
    """Validation accuracy in per cent after so many steps, mean over seeds."""
    rows = []
    for key, mine in groups.items():
        if len(mine[0]["curve"]) > 1:
            points = zip(*(one["curve"] for one in mine), strict=True)
            found = [(step[0][0], 100 * statistics.fmean(one[1] for one in step)) for step in points]
            rows.append([*_titles(key, mine), ", ".join(f"{step}: {value:.1f}" for step, value in found)])
    return table([*_HEAD, "validation"], rows)


_HEAD = ["set", "variant", "steps", "rate", "changed", "seeds"]


def _titles(key: Key, mine: Sequence[Record]) -> list[str]:
    name, variant, steps, rate, changes = key
    return [name, variant, str(steps), f"{rate:g}", changes.strip("{}"), str(len(mine))]


def _shares(importance: NDArray[Any]) -> NDArray[Any]:
    """How often each layer is drawn where one is drawn in a step."""
    weights: NDArray[Any] = 1 / (1 + np.exp(-importance))
    return weights / weights.sum()


def _gone(kept: Sequence[str] | None, values: Sequence[NDArray[Any]]) -> list[set[int]]:
    if kept is None:
        return [set() for _ in values]
    return [set(range(len(masks))) - _numbers(text) for text, masks in zip(kept, values, strict=True)]


def _numbers(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _common(one: Sequence[set[int]], two: Sequence[set[int]]) -> float:
    return sum(len(a & b) for a, b in zip(one, two, strict=True)) / sum(map(len, one))


def _chance(one: Sequence[set[int]], two: Sequence[set[int]], values: Sequence[NDArray[Any]]) -> float:
    both = sum(len(a) * len(b) / len(masks) for a, b, masks in zip(one, two, values, strict=True))
    return both / sum(map(len, one))


def _ranks(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Spearman's correlation; what is equal gets its mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, two).statistic)
