"""What a user can cause: a tool ends in the message alone, without a traceback."""

from collections.abc import Iterable


class VigError(Exception):
    """Input that cannot be used; the message says what was wrong and what to do."""

    @classmethod
    def of(cls, what: str, problems: Iterable[str]) -> "VigError":
        """The error that lists several problems, a line each."""
        return cls(f"{what}:" + "".join(f"\n  - {one}" for one in problems))


class UsageError(VigError, ValueError):
    """A command line or config that cannot be run; the message says what to change."""


class DataError(VigError, ValueError):
    """Data that does not fit the config; the message lists everything that is wrong."""


class SampleError(DataError):
    """A file of a data set that cannot be trained or tested on; the message names it."""

    def __str__(self) -> str:
        # Out of a worker it comes with a traceback before it.
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class FormatError(DataError):
    """Annotations that are not of the format, or that have no place in COCO's."""


class ModelError(VigError, ValueError):
    """The parts of a model do not fit; the message lists everything that is wrong."""


class RequirementError(VigError, ImportError):
    """A package that the config needs is missing, too old, too new or incomplete."""


class CheckpointError(VigError, RuntimeError):
    """A checkpoint that cannot be used; the message says which file, why, and what to do."""


class LaunchError(VigError, ValueError):
    """The processes were not started as the command line says; the message says what to do."""


class LayerDecayError(VigError, ValueError):
    """Options of layer decay that do not fit each other or the model."""


class ExportError(VigError, RuntimeError):
    """A model that torch cannot export; the message says at what, and what to do."""
