"""The largest batch that fits a limit."""

from __future__ import annotations

from collections.abc import Callable

MOST = 1 << 16
"""Larger batches are not looked for."""
_SECANTS = 6
"""So often a straight line guesses; then halves, in case memory is no straight line."""


def largest_batch(needs: Callable[[int], int], limit: int) -> int | None:
    """The largest number of rows whose need is within the limit; None where that of one row is not.

    Args:
        needs: Bytes for so many rows; more for more rows, nearly along a straight line.
        limit: In bytes.
    """
    low, at_low = 1, needs(1)
    if at_low > limit:
        return None
    high, at_high = 2, needs(2)
    while at_high <= limit:
        if high >= MOST:
            return MOST
        per_row = max(1.0, (at_high - at_low) / (high - low))
        low, at_low = high, at_high
        high = min(MOST, low + 1 + int((limit - at_low) / per_row))
        at_high = needs(high)
    tries = 0
    while high - low > 1:
        share = (limit - at_low) / (at_high - at_low) if tries < _SECANTS else 0.5
        guess = min(high - 1, max(low + 1, low + int(share * (high - low))))
        at_guess = needs(guess)
        if at_guess <= limit:
            low, at_low = guess, at_guess
        else:
            high, at_high = guess, at_guess
        tries += 1
    return low
