"""Checks before a run: environment, config, model, weights, and data (`checks.data`).

A check says what is wrong and changes nothing; a repair (`checks.data.repair`) is another step.
"""
