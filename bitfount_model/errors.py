"""Every error that this project raises on purpose, as one tree.

    BitfountError
    ├── ConfigurationError          a job file, an option or an argument is not what it must be (also a ValueError)
    ├── DataError                   the rows are not what the schema, the splitter or the target need
    │   ├── DataSourceError         a table cannot be opened or read
    │   ├── SchemaMismatchError     columns, types or categories differ from the schema; lists all differences
    │   └── MissingSplitError       the split that is asked for has no rows (also a ValueError)
    ├── ModelError                  the user's model cannot be used
    │   ├── ModelFileError          a model file does not import, or holds no (or several) model classes
    │   ├── SourceCodeError         a class whose source cannot be written as a module of its own
    │   ├── NotInitialisedError     a method was called before `initialise_model` (also a ValueError)
    │   ├── ConfinedModelError      the user's own code raised in the process that a pod runs it in
    │   └── TrainingError           the user's own code raised, or training left finite numbers
    ├── ParameterError              names, shapes, dtypes or values of parameters do not fit (also a ValueError)
    │   └── WeightsFileError        a weights file is damaged, hostile, too large, or not a weights file
    ├── SerializationError          a dumped object has unknown keys, unknown classes or bad values (also a ValueError)
    ├── FederationError             modeller and pods do not come together
    │   ├── QuorumError             fewer pods gave a usable answer than the quorum; says why each of the others did not
    │   ├── PodError                a pod's step failed; the message is what its owner lets others read
    │   ├── ConfinementError        the process that a pod runs a model in has ended, or says what it may not
    │   ├── ModellerGoneError       a pod has waited for its modeller in vain
    │   ├── SupersededError         another session of the same job has taken over
    │   └── PrivacyBudgetError      one more noisy update would go beyond what the pod's owner allows
    ├── SecureSumError              a step of a secure sum is refused: it could be wrong, or tell one pod's update
    └── StorageError                the place for artifacts cannot be read or written
        ├── IntegrityError          stored bytes are not those that were written
        └── TrackingError           MLflow cannot be reached, or refuses

A message names what was found, what was wanted, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping


class BitfountError(Exception):
    """Root of the tree: catch this to catch every error that is raised on purpose."""


class ConfigurationError(BitfountError, ValueError):
    """A job file, an option or an argument is not what it must be."""


class DataError(BitfountError):
    """The rows are not what the schema, the splitter or the target need."""


class DataSourceError(DataError):
    """A table cannot be opened or read."""


class TooFewRowsError(DataError):
    """Fewer rows than their owner, or whoever asks for them, wants."""


class SchemaMismatchError(DataError):
    """A table differs from the schema; the message lists every difference.

    Attributes:
        differences: one sentence a difference, in column order.
    """

    def __init__(self, message: str, differences: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class MissingSplitError(DataError, ValueError):
    """The split that is asked for (train, validation or test) has no rows."""


class ModelError(BitfountError):
    """The user's model cannot be used."""


class ModelFileError(ModelError):
    """A model file does not import, or does not hold exactly the class that is wanted."""


class SourceCodeError(ModelError):
    """A class cannot be written as a module that runs on its own."""


class NotInitialisedError(ModelError, ValueError):
    """A method was called before `initialise_model`."""


class ConfinedModelError(ModelError):
    """The user's own code raised in the process that a pod runs it in; the message may hold values of rows.

    Attributes:
        kind: the name of the error's class, if it is one of Python's or of this project's.
        met: the limit that it seems to have met, in words that hold no values; None for none.
        transient: whether the same call may succeed in a moment.
    """

    def __init__(self, message: str, *, kind: str, met: str | None = None, transient: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.met = met
        self.transient = transient


class TrainingError(ModelError):
    """The user's own code raised in a step, or training left finite numbers."""


class DivergedError(TrainingError):
    """Parameters are not finite after training; the message names them and no value."""


class ParameterError(BitfountError, ValueError):
    """Names, shapes, dtypes or values of parameters do not fit."""


class WeightsFileError(ParameterError):
    """A weights file is damaged, hostile, too large, or not a weights file."""


class SerializationError(BitfountError, ValueError):
    """A dumped object has unknown keys, unknown class names or bad values."""


class FederationError(BitfountError):
    """Modeller and pods do not come together."""


class QuorumError(FederationError):
    """Fewer pods gave a usable answer than the quorum; what was there before stands.

    Attributes:
        refused: pod -> why its answer was not used.
    """

    def __init__(self, message: str, refused: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.refused = dict(refused or {})


class PodError(FederationError):
    """A pod's step failed; the message is what its owner lets others read.

    Attributes:
        transient: whether the same step may succeed in a moment.
        plain: the message without any value of a row, whatever the owner lets others read.
    """

    def __init__(self, message: str, *, transient: bool = False, plain: str = "") -> None:
        super().__init__(message)
        self.transient = transient
        self.plain = plain


class ConfinementError(FederationError):
    """The process that a pod runs a model in has ended, or says what it may not; the message holds no values of rows."""


class ModellerGoneError(FederationError):
    """A pod has waited for its modeller in vain."""


class SupersededError(FederationError):
    """Another session of the same job has taken over."""


class SecureSumError(BitfountError):
    """A step of a secure sum is refused: it could give a wrong sum, or tell one pod's update."""


class PrivacyBudgetError(FederationError):
    """One more noisy update would go beyond what the pod's owner allows."""


class StorageError(BitfountError):
    """The place for artifacts cannot be read or written."""


class StoreAwayError(StorageError):
    """The place for artifacts did not answer for as long as it was tried."""


class IntegrityError(StorageError):
    """Stored bytes are not those that were written."""


class TrackingError(StorageError):
    """MLflow cannot be reached, or refuses."""
