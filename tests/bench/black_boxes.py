"""Seconds per proposal where two objectives are black boxes (run as a program).

OMP_NUM_THREADS=1 python tests/bench/black_boxes.py [SPACE] [SAMPLER ...]

So many random trials of a made-up task are told; then two batches of four are asked for and told. Processor seconds per
proposal: the first batch (with what is compiled), and the second.
"""

import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from autopeft.domain.results import ScoredTrial
from autopeft.search import make_sampler
from tests.bench.made_up_tasks import OBJECTIVES, Task
from tests.contract.sampler_contract import told

OBSERVED = (20, 60, 150)


def measure(name, task, observed):
    """Processor and wall seconds per proposal of both batches."""
    drawn, sampler = (make_sampler(one, task.space, OBJECTIVES, 0) for one in ("random", name))
    for number in range(observed):
        proposal = drawn.ask(number)
        one = ScoredTrial(told(number, proposal).trial, task.observed(proposal.candidate, 0))
        drawn.tell(one)
        sampler.tell(one)
    found = []
    for batch in range(2):
        cpu, wall = 0.0, 0.0
        for number in range(observed + 4 * batch, observed + 4 * batch + 4):
            before = time.process_time(), time.perf_counter()
            proposal = sampler.ask(number)
            cpu, wall = cpu + time.process_time() - before[0], wall + time.perf_counter() - before[1]
            sampler.tell(ScoredTrial(told(number, proposal).trial, task.observed(proposal.candidate, 0)))
        found.append((cpu / 4, wall / 4))
    return found


def main():
    warnings.simplefilter("ignore")
    space = sys.argv[1] if len(sys.argv) > 1 else "lora"
    task = Task(space, 0)
    names = sys.argv[2:] or ["front", "autopeft-map", "autopeft"]
    print(f"{space}, {len(task.space.parameters)} parameters; s per proposal: first batch of four, second (its wall)")
    print(f"{'sampler':14}" + "".join(f"{count:>28}" for count in OBSERVED), flush=True)
    for name in names:
        cells = ""
        for count in OBSERVED:
            (first, _), (second, wall) = measure(name, task, count)
            cells += f"{first:12.2f}{second:8.2f} ({wall:.2f})"
        print(f"{name:14}{cells}", flush=True)


if __name__ == "__main__":
    main()
