"""The first steps of a training as an allocator sees them, out of the trace of one."""

from __future__ import annotations

from collections.abc import Iterator

from autopeft.evaluate.memory.step import Timeline
from autopeft.evaluate.memory.tracker import Event

STEPS = 3
"""In the first the optimiser makes its state in what the backward pass gave up; in the second the activations look for
new places; the third finds them."""


def first_steps(timeline: Timeline, steps: int = STEPS) -> Iterator[Event]:
    """Births and deaths of so many steps of one shape, in order of time, those of weights and adapters first.

    The optimiser's state is born in the update of the first step. What a step leaves alive, where its outputs are held,
    dies in the next one after its forward pass.
    """
    cuts, events = timeline.cuts, timeline.events
    yield from events[: cuts.state]
    state = events[cuts.state : cuts.inputs]
    batch = events[cuts.inputs : cuts.start]
    step = events[cuts.start + cuts.carried :]
    until_update = cuts.update - cuts.start - cuts.carried
    lasting = {event.storage for event in events[: cuts.inputs]}
    apart = max((abs(event.storage) for event in events), default=0) + 1
    held: dict[int, int] = {}
    for number in range(steps):

        def renamed(event: Event, number: int = number, held: dict[int, int] = held) -> Event | None:
            """The event in this step; None where it cannot happen in it."""
            if event.storage in lasting:
                return event
            if event.storage < 0:  # left by the step before
                earlier = held.get(-event.storage)
                return None if earlier is None else Event(earlier, event.size)
            return Event(event.storage + number * apart, event.size)

        alive: dict[int, int] = {}
        for place, event in enumerate((*batch, *step)):
            if number == 0 and place == len(batch) + until_update:
                yield from state
            if event.storage > 0 and event.storage not in lasting:
                if event.size > 0:
                    alive[event.storage] = event.storage + number * apart
                elif event.storage in alive:
                    del alive[event.storage]
            found = renamed(event)
            if found is not None:
                yield found
        sizes = {event.storage: event.size for event in batch}
        yield from (Event(storage + number * apart, -size) for storage, size in sizes.items() if storage in alive)
        held = {storage: name for storage, name in alive.items() if storage not in sizes}
