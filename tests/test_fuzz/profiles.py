"""How many examples a test draws, whatever the profile (see conftest)."""

from hypothesis import settings


def times(factor: float) -> settings:
    """So many times the profile's number of examples."""
    return settings(max_examples=max(round(settings.default.max_examples * factor), 1))
