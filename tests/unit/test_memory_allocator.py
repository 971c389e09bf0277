"""The model of CUDA's caching allocator, rule by rule."""

from __future__ import annotations

import pytest

from autopeft.evaluate.memory.allocator import EMPTY_CACHE, CachingAllocator, simulated
from autopeft.evaluate.memory.tracker import Event

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        # More than 1 MiB: a segment of 20 MiB, of which the rest is split off.
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        # From 10 MiB on a segment of its own, rounded up to 2 MiB; what is left is too little to split off.
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (37 * MIB, 38 * MIB, 38 * MIB),
    ],
)
def test_one_block_takes_what_the_rules_say(size: int, allocated: int, reserved: int) -> None:
    found = simulated([Event(1, size)])
    assert (found.allocated_peak, found.reserved_peak) == (allocated, reserved)


def test_a_freed_block_serves_the_next_request_that_fits() -> None:
    found = simulated([Event(1, 40 * MIB), Event(1, -40 * MIB), Event(2, 30 * MIB), Event(3, 10 * MIB)])
    assert found.reserved_peak == 40 * MIB
    assert found.allocated_peak == 40 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    large, _, small = (allocator.allocate(size * MIB) for size in (60, 12, 40))
    allocator.release(large)
    allocator.release(small)
    again = allocator.allocate(40 * MIB)
    assert again is small


def test_neighbours_are_joined_so_that_a_segment_is_whole_again() -> None:
    allocator = CachingAllocator()
    parts = [allocator.allocate(5 * MIB) for _ in range(4)]
    assert allocator.reserved == 20 * MIB
    for part in (parts[1], parts[3], parts[0], parts[2]):
        allocator.release(part)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


def test_small_and_large_blocks_never_share_a_segment() -> None:
    assert simulated([Event(1, 5 * MIB), Event(2, KIB)]).reserved_peak == 22 * MIB


def test_an_emptied_cache_keeps_segments_that_are_in_use() -> None:
    events = [Event(1, 5 * MIB), Event(2, 40 * MIB), Event(2, -40 * MIB), EMPTY_CACHE, Event(3, 40 * MIB)]
    assert simulated(events).reserved_peak == 60 * MIB
    # Without emptying, the same.
    assert simulated([event for event in events if event != EMPTY_CACHE]).reserved_peak == 60 * MIB


def test_holes_that_do_not_fit_are_what_fragmentation_is() -> None:
    events = [Event(index, 30 * MIB) for index in range(4)]
    events += [Event(0, -30 * MIB), Event(2, -30 * MIB), Event(9, 50 * MIB)]
    found = simulated(events)
    assert found.reserved_peak == 4 * 30 * MIB + 50 * MIB
    assert found.allocated_peak == 120 * MIB


def test_a_workspace_counts_as_the_first_block() -> None:
    assert simulated([], workspace=8_519_680).allocated_peak == 8_519_680
