"""A model of torch's caching allocator for CUDA: what it holds of the device for a given order of births and deaths.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` of torch 2.13 with default settings, on one stream. What the
model leaves out: other streams, expandable segments, and the retry that empties the cache where the device is full.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

from autopeft.evaluate.memory.tracker import Event

MIN_BLOCK = 512
"""Every size is rounded up to a multiple of it."""
SMALL = 1 << 20
"""Blocks up to this size come from segments of their own, and larger blocks are split where more than this is left."""
SMALL_SEGMENT = 2 << 20
LARGE_SEGMENT = 20 << 20
"""Of blocks that are not small and below `ROUNDED_FROM`."""
ROUNDED_FROM = 10 << 20
"""Blocks from this size on get a segment of their own size, rounded up to `SEGMENT_STEP`."""
SEGMENT_STEP = 2 << 20

EMPTY_CACHE = Event(0, 0)
"""Stands among events for `torch.cuda.empty_cache()`."""


@dataclass(frozen=True)
class Reserved:
    """The largest numbers of a course, in bytes."""

    allocated_peak: int
    """Of blocks in use: `torch.cuda.max_memory_allocated`."""
    reserved_peak: int
    """Of segments held: `torch.cuda.max_memory_reserved`."""


class _Block:
    __slots__ = ("after", "before", "free", "number", "size", "small")

    def __init__(self, size: int, small: bool) -> None:
        self.size = size
        self.small = small
        self.free = False
        self.number = 0
        self.before: _Block | None = None
        self.after: _Block | None = None


class CachingAllocator:
    """Best fit among free blocks of a pool; free neighbours of one segment are joined."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self.allocated_peak = self.reserved_peak = 0
        self._pools: dict[bool, list[tuple[int, int, _Block]]] = {True: [], False: []}
        self._count = 0

    def allocate(self, size: int) -> _Block | None:
        """A block of at least so many bytes; None for none."""
        if size <= 0:
            return None
        size = max(MIN_BLOCK, -(-size // MIN_BLOCK) * MIN_BLOCK)
        small = size <= SMALL
        pool = self._pools[small]
        place = bisect.bisect_left(pool, (size, -1), key=lambda entry: entry[:2])
        block = pool.pop(place)[2] if place < len(pool) else self._segment(size, small)
        left = block.size - size
        if left >= MIN_BLOCK if small else left > SMALL:
            rest = _Block(left, small)
            rest.before, rest.after = block, block.after
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            self._put_back(rest)
        block.free = False
        self.allocated += block.size
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        return block

    def release(self, block: _Block | None) -> None:
        """Give a block back to its pool."""
        if block is None:
            return
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is None or not other.free:
                continue
            self._take_out(other)
            block.size += other.size
            if other is block.before:
                block.before = other.before
                if other.before is not None:
                    other.before.after = block
            else:
                block.after = other.after
                if other.after is not None:
                    other.after.before = block
        self._put_back(block)

    def empty_cache(self) -> None:
        """Give segments that are free as a whole back to the device."""
        for small, pool in self._pools.items():
            whole = [entry for entry in pool if entry[2].before is None and entry[2].after is None]
            self.reserved -= sum(size for size, _, _ in whole)
            self._pools[small] = [entry for entry in pool if entry not in whole]

    def _segment(self, size: int, small: bool) -> _Block:
        if small:
            held = SMALL_SEGMENT
        elif size < ROUNDED_FROM:
            held = LARGE_SEGMENT
        else:
            held = -(-size // SEGMENT_STEP) * SEGMENT_STEP
        self.reserved += held
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        return _Block(held, small)

    def _put_back(self, block: _Block) -> None:
        block.free = True
        self._count += 1
        block.number = self._count
        bisect.insort(self._pools[block.small], (block.size, block.number, block), key=lambda entry: entry[:2])

    def _take_out(self, block: _Block) -> None:
        pool = self._pools[block.small]
        pool.pop(bisect.bisect_left(pool, (block.size, block.number), key=lambda entry: entry[:2]))


def simulated(events: Iterable[Event], workspace: int = 0) -> Reserved:
    """Run a course of births and deaths through the allocator, a library's workspace of so many bytes first."""
    allocator = CachingAllocator()
    allocator.allocate(workspace)
    blocks: dict[int, _Block | None] = {}
    for event in events:
        if event == EMPTY_CACHE:
            allocator.empty_cache()
        elif event.size > 0:
            blocks[event.storage] = allocator.allocate(event.size)
        else:
            allocator.release(blocks.pop(event.storage, None))
    return Reserved(allocator.allocated_peak, allocator.reserved_peak)
