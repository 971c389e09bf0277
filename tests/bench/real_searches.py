"""Hypervolume of real searches by different samplers, in one box (run as a program).

for seed in 0 1 2; do for s in front tpe random; do
    OMP_NUM_THREADS=1 autopeft search --budget 12 --sampler $s --seed $seed --name $s-$seed --runs RUNS --runner local
done; done
python tests/bench/real_searches.py RUNS

The box spans the accuracies and the logarithms of the peaks of training that any of the runs saw. The front is that of
observed accuracies; 1 is the whole box.
"""

import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.domain.pareto import hypervolume

HALF = 6
"""Trials after which a search is looked at before its end."""


def main(folder: Path) -> None:
    """Print one line per run, and the means per sampler."""
    tables = {path.parent.name: pd.read_parquet(path) for path in sorted(folder.glob("*/trials.parquet"))}
    losses = {name: _losses(table) for name, table in tables.items()}
    seen = np.concatenate(list(losses.values()))
    seen = seen[np.isfinite(seen).all(axis=1)]
    low, high = seen.min(axis=0), seen.max(axis=0)
    memory = [f"{np.exp(end) / 2**20:.1f}" for end in (low[1], high[1])]
    print(f"box: accuracy {-high[0]:.3f} to {-low[0]:.3f}, {memory[0]} to {memory[1]} MiB")
    by_sampler: dict[str, list[tuple[float, float]]] = {}
    for name, found in losses.items():
        scaled = (found - low) / (high - low)
        shares = tuple(_share(part) for part in (scaled[:HALF], scaled))
        by_sampler.setdefault(name.rpartition("-")[0], []).append(shares)
        print(f"{name:12s} {len(found):3d} trials  after {HALF}: {shares[0]:.3f}  at the end: {shares[1]:.3f}")
    for name, shares in by_sampler.items():
        first, last = (fmean(column) for column in zip(*shares, strict=True))
        print(f"{name:12s} mean of {len(shares)}: after {HALF}: {first:.3f}  at the end: {last:.3f}")


def _losses(table: pd.DataFrame) -> np.ndarray:
    """`[trials, 2]`: accuracy as a loss, logarithm of bytes; not finite where a trial has no result."""
    return np.stack([-table["accuracy"].astype(float), np.log(table["train_peak_bytes"].astype(float))], axis=1)


def _share(points: np.ndarray) -> float:
    return hypervolume(points[np.isfinite(points).all(axis=1)], np.ones(2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
