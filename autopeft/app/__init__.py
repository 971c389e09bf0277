"""Composition root: builds store, sampler, runner and evaluator from a spec. Returns values; prints nothing."""
