"""Checkpoints: safe reading, conversion public <-> mm, initial weights, publishing."""
