"""What warm starts bring and cost on made-up tasks: trials to a share of the best known hypervolume (a program).

OMP_NUM_THREADS=1 python tests/bench/warm_starts.py [--seeds 20] [--space lora] [--trials 48] [--earlier 48] [KIND ...]

An earlier run of `front` saw `--earlier` trials: of the very task (`same`), of one of the same kind whose numbers
differ (`other`), or of the very task with the qualities shuffled among its trials (`shuffled`). See `made_up_tasks.py`.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.domain import pareto
from autopeft.domain.results import ScoredTrial
from autopeft.domain.start import EarlierRun, EarlierTrial, Start, StartingPoint, most_of, order
from autopeft.domain.trial import Trial, TrialStatus
from autopeft.search import make_sampler
from tests.bench.made_up_tasks import OBJECTIVES, Task, share

TRUTHS = 3
KINDS = ("cold", "shuffled", "other", "same")


def search(task, seed, trials, start=None, sampler="front"):
    """Trials in the order they were tried, with what they told."""
    made = make_sampler(sampler, task.space, OBJECTIVES, seed, known=task.known, start=start)
    told = []
    for number in range(trials):
        proposal = made.ask(number)
        trial = Trial(
            number=number,
            candidate=proposal.candidate,
            parameters=proposal.parameters,
            seed=0,
            status=TrialStatus.COMPLETE,
            attempt=1,
            sampler_state=proposal.sampler_state,
        )
        told.append(ScoredTrial(trial, task.observed(proposal.candidate, seed)))
        made.tell(told[-1])
    return told


def start_of(earlier, trials, mean=True, points=True):
    """What these trials of an earlier run let a search of so many trials begin with."""
    losses = np.array([(-one.values[0], np.log(one.values[1])) for one in earlier])
    front = [earlier[index] for index in np.flatnonzero(pareto.non_dominated(losses))]
    ordered = order(np.array([(-one.values[0], np.log(one.values[1])) for one in front]))
    return Start(
        points=tuple(
            StartingPoint(
                parameters=front[index].trial.parameters,
                candidate=front[index].trial.candidate,
                origin="warm start of earlier",
            )
            for index in ordered
            if points
        ),
        most=most_of(trials),
        earlier=(
            EarlierRun(
                name="earlier",
                quality="accuracy",
                maximised=True,
                trials=tuple(
                    EarlierTrial(
                        parameters=one.trial.parameters,
                        values={"accuracy": one.values[0], "train_peak_bytes": one.values[1]},
                    )
                    for one in earlier
                ),
            ),
        )
        * int(mean),
    )


def shuffled(earlier, seed):
    """The trials with their qualities among each other's."""
    places = np.random.default_rng([seed, 3]).permutation(len(earlier))
    return [
        ScoredTrial(one.trial, (earlier[place].values[0], one.values[1]))
        for one, place in zip(earlier, places, strict=True)
    ]


def trials_to(task, told, wanted):
    """Trials until this share of the best known hypervolume; infinite where it was not reached."""
    for count in range(1, len(told) + 1):
        if share(task, [one.trial.candidate for one in told[:count]]) >= wanted:
            return count
    return np.inf


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--earlier", type=int, default=48)
    parser.add_argument("--space", default="lora")
    parser.add_argument("--no-mean", action="store_true", help="only the points")
    parser.add_argument("--no-points", action="store_true", help="only the mean")
    asked = parser.parse_args()
    tasks = [Task(asked.space, truth) for truth in range(2 * TRUTHS)]
    found = {kind: [] for kind in asked.kinds}
    for seed in range(asked.seeds):
        task, other = tasks[seed % TRUTHS], tasks[TRUTHS + seed % TRUTHS]
        before = {
            "same": lambda task=task, seed=seed: search(task, seed + 1000, asked.earlier),
            "other": lambda other=other, seed=seed: search(other, seed + 1000, asked.earlier),
            "shuffled": lambda task=task, seed=seed: shuffled(search(task, seed + 1000, asked.earlier), seed),
        }
        for kind in asked.kinds:
            make = before.get(kind)
            start = make and start_of(make(), asked.trials, not asked.no_mean, not asked.no_points)
            told = search(task, seed, asked.trials, start)
            ends = [trials_to(task, told, wanted) for wanted in (0.9, 0.95, 0.98)]
            found[kind].append([*ends, share(task, [one.trial.candidate for one in told])])
    print(f"{asked.space}, {asked.seeds} seeds, {asked.trials} trials: median trials to (not reached), and final share")
    for kind, rows in found.items():
        table = np.array(rows)
        cells = "".join(
            f"  {mark}: {np.median(column):5.1f} ({np.isinf(column).sum()})"
            for mark, column in zip(("90%", "95%", "98%"), table[:, :3].T, strict=True)
        )
        capped = np.minimum(table[:, :3], asked.trials + 1).mean(axis=0)
        print(f"{kind:10}{cells}  means {np.round(capped, 1)}  share {table[:, 3].mean():.4f}", flush=True)


if __name__ == "__main__":
    main()
