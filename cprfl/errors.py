"""What a user can get wrong, one small class each.

Every one says what is wrong, where, and what would mend it; the command line prints it without a traceback and ends
with status 2.
"""

from typing import Any


class UserError(ValueError):
    """Base of everything that the user, not we, can mend."""


class ConfigError(UserError):
    """A configuration file or an override does not describe an experiment."""


class DatasetError(UserError):
    """Annotations, list files or label files are missing, do not parse or contradict each other.

    Attributes:
        settings: of the data set, with which it would be read; what `cprfl init` writes, saying so.
    """

    def __init__(self, message: str, **settings: Any) -> None:
        super().__init__(message)
        self.settings = settings


class UnreadableImageError(UserError):
    """One image is missing or does not decode."""


class BadImagesError(UserError):
    """Images that are listed are missing or do not decode."""


class ClassNamesError(UserError):
    """Two parts of an experiment disagree on the names of the classes."""


class WeightsError(UserError):
    """Weights of an encoder are neither at hand nor to be had."""


class TextEmbeddingsError(UserError):
    """A file of class-name embeddings is missing or does not hold what it should."""


class StorageError(UserError):
    """A bucket or folder cannot be reached, read or written."""


class FeatureStoreError(UserError):
    """A feature store is missing, incomplete, damaged or of another version."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another experiment."""


class ShapeError(UserError):
    """Shapes of features, embeddings or targets do not fit together."""


class NonFiniteError(UserError):
    """Features or loss contain NaN or infinity."""


class ClusterError(UserError):
    """The Ray cluster or its shared storage cannot be used as configured."""


class SweepError(UserError):
    """A sweep cannot be resumed, or found nothing."""


class TrackingError(UserError):
    """MLflow's server or store cannot be used as configured."""


class MachineError(UserError):
    """The machine has no room, right, memory or file handle for what is to be done."""
