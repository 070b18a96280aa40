"""Class names of the digits data, in label order, and the type of its progress report."""

from collections.abc import Callable

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Progress = Callable[[str, int, int], None]
