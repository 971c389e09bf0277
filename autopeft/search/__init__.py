"""Samplers. The only room that imports optuna."""
