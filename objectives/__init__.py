"""Objectives, one small file each: pure functions of `Measurements`."""
