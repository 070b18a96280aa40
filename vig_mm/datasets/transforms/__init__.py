"""Data transforms, found by name in any pipeline."""

from .map_labels import MapLabels

__all__ = ["MapLabels"]
