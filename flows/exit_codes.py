"""What the exit code of a command says."""

from __future__ import annotations

EXIT_CODES = {
    "FederationError": 7,
    "ConfigurationError": 2,
    "DataError": 3,
    "ModelError": 4,
    "ParameterError": 4,
    "SerializationError": 2,
    "StorageError": 5,
}
NOT_RECORDED = 6
INTERRUPTED = 130
UNEXPECTED = 1

CODES_HELP = """\b
Exit codes:
  0    done
  1    an error that nobody foresaw
  2    the command line or the job file is wrong
  3    the rows are not what the job needs
  4    the model or its weights cannot be used, or training failed
  5    artifacts cannot be written or read
  6    trained and saved, but MLflow could not be reached: run again with the same --job-id to record it
  7    too few pods answered, or another start of the job took over; the same --job-id goes on
  130  stopped by Ctrl-C
"""


def exit_code(error: Exception) -> int:
    """The exit code of an error: that of the nearest class that has one."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return next((EXIT_CODES[name] for name in names if name in EXIT_CODES), UNEXPECTED)
