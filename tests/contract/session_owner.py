"""A process that takes a run, starts some trials, adds one more, and beats until it is killed.

Arguments: URL, name of the run, number of trials to start, and `--then-leave` to end instead.
"""

import sys
import time

from autopeft.store import open_store
from tests.contract.run_samples import proposal_of


def main(url, name, count, *options):
    """Do it, and print `ready`."""
    store = open_store(url)
    run = store.open(name)
    run.open_session()
    for index in range(int(count)):
        run.start(run.add(proposal_of(index), 1).number, "w")
    run.add(proposal_of(int(count)), 1)
    if options:
        store.close()
        return
    time.sleep(0.5)
    run.heartbeat()
    print("ready", flush=True)
    while True:
        run.heartbeat()
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
