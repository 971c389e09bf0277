"""Searches replayed on recorded tables, with a simulated clock."""

from autopeft.search.replay.clock import BLIND, replay
from autopeft.search.replay.starts import start_from
from autopeft.search.replay.truth import Truth

__all__ = ["BLIND", "Truth", "replay", "start_from"]
