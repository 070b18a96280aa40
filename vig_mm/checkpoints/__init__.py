"""Checkpoints: safe reading, conversion between the public and the mm form, initial weights."""
