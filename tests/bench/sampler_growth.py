"""How the time of a proposal grows with the trials that came before, up to 10,000 (run as a program).

    OMP_NUM_THREADS=1 python tests/bench/sampler_growth.py [SAMPLER ...] [--trials 100,1000,10000]

The trials before are drawn at random from the full space on a made-up task (`made_up_tasks.py`). Then the sampler is
asked a few times, each answer is told, and the median is printed: seconds of the processor, and their share of a trial
of 30 s. The first question after so many trials is apart: it is what a resumed search waits for.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.domain.results import ScoredTrial
from autopeft.domain.trial import Trial, TrialStatus
from autopeft.search import SAMPLERS, make_sampler
from autopeft.search.filling import fill
from tests.bench.made_up_tasks import OBJECTIVES, Task

ASKED = 7
TRIAL_S = 30.0


def scored(task, number, parameters, candidate):
    trial = Trial(number=number, candidate=candidate, parameters=parameters, seed=0, status=TrialStatus.COMPLETE)
    return ScoredTrial(trial, task.observed(candidate, number))


def growth(name, task, before):
    """Seconds of the first question, and the median of some more."""
    sampler = make_sampler(name, task.space, OBJECTIVES, 0, known=task.known if name == "front" else None)
    sampler.replay([scored(task, number, *one) for number, one in enumerate(before)])
    taken = []
    for number in range(len(before), len(before) + ASKED):
        start = time.process_time()
        proposal = sampler.ask(number)
        sampler.tell(scored(task, number, proposal.parameters, proposal.candidate))
        taken.append(time.process_time() - start)
    return taken[0], statistics.median(taken[1:])


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("samplers", nargs="*", default=[name for name in SAMPLERS if name not in ("gp", "autopeft")])
    parser.add_argument("--trials", default="100,1000,10000")
    asked = parser.parse_args()
    sizes = [int(one) for one in asked.trials.split(",")]
    task = Task("full", 0)
    drawn, seen = [], set()
    for parameters, candidate in fill(task.space, 0):
        if candidate.digest not in seen:
            seen.add(candidate.digest)
            drawn.append((parameters, candidate))
        if len(drawn) == max(sizes):
            break
    order = np.random.default_rng(0).permutation(len(drawn))
    print(
        f"{'sampler':12}" + "".join(f"{f'{size} trials: first, then, share of 30 s':>44}" for size in sizes), flush=True
    )
    for name in asked.samplers:
        cells = []
        for size in sizes:
            first, then = growth(name, task, [drawn[index] for index in order[:size]])
            cells.append(f"{first:8.2f} s {then:8.3f} s {then / TRIAL_S:8.2%}")
        print(f"{name:12}" + "".join(f"{cell:>44}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
