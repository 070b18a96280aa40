"""Checks before a run: environment, config options, channels, optimizer, weights.

Those of data: `vig_mm.inspection`.
"""
