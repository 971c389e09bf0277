"""The first steps of a training as an allocator sees them, out of traces of single ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from autopeft.evaluate.memory.allocator import EMPTY_CACHE
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.step import Timeline
from autopeft.evaluate.memory.tracker import Event

SHORT = 8
"""The batch before the longest has this part of its tokens: batches differ in length, and most are short."""


def earlier(setup: Setup) -> Setup:
    """The step before the one that is asked about: as long where no row is padded, else a short one."""
    return replace(setup, tokens=max(1, setup.tokens // SHORT)) if setup.padded else setup


def first_steps(steps: Sequence[Timeline], *, emptied: bool = False) -> Iterator[Event]:
    """Births and deaths in these steps of one model, one after another, those of its weights and adapters first.

    The optimiser's state is born in the update of the first, where the traces have it from the start. What a step
    leaves alive, where its outputs are held, dies in the next one once the model has returned; gradients die at the
    start of it. `emptied` says whether the cache is given back between two steps, as the allocator does before it
    refuses a request.
    """
    cuts, events = steps[0].cuts, steps[0].events
    yield from events[: cuts.state]
    lasting = {event.storage for event in events[: cuts.inputs]}
    apart = 1 + max(abs(event.storage) for step in steps for event in step.events)
    held: list[Event] = []
    cleared: list[Event] = []
    for number, step in enumerate(steps):
        cuts, events = step.cuts, step.events
        if number and emptied:
            yield EMPTY_CACHE
        yield from cleared
        cleared = []
        alive: dict[int, Event] = {}
        for place, event in enumerate(events[cuts.inputs :], cuts.inputs):
            if cuts.start <= place < cuts.start + cuts.carried:
                continue  # the birth of what the step before left: it was born there
            if number == 0 and place == cuts.update:
                yield from steps[0].events[steps[0].cuts.state : steps[0].cuts.inputs]
            if event.storage < 0:
                yield from held
                held = []
            elif event.storage in lasting:
                yield event
            else:
                storage = event.storage + number * apart
                alive[storage] = Event(storage, -event.size)
                if event.size < 0:
                    del alive[storage]
                if place < cuts.cleared:
                    yield Event(storage, event.size)
                else:  # the next step begins with it
                    cleared.append(Event(storage, event.size))
        inputs = {event.storage + number * apart for event in events[cuts.inputs : cuts.start]}
        yield from (death for storage, death in alive.items() if storage in inputs)
        held += [death for storage, death in alive.items() if storage not in inputs]
