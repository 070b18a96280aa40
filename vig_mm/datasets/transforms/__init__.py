"""Data transforms, found by name in any pipeline."""

from .load_tiff import LoadTiff
from .map_labels import MapLabels

__all__ = ["LoadTiff", "MapLabels"]
