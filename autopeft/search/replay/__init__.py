"""Searches replayed on recorded tables, with a simulated clock."""

from autopeft.search.replay.clock import replay, sampler_of
from autopeft.search.replay.starts import start_from
from autopeft.search.replay.table_space import view_of
from autopeft.search.replay.truth import Truth

__all__ = ["Truth", "replay", "sampler_of", "start_from", "view_of"]
