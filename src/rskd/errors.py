"""What can go wrong in a way that a user can act on.

Every message is one sentence that names what, where, the limit and the way out. None of these
derives from `RuntimeError`, which Qt worker threads swallow.
"""


class RskdError(Exception):
    """A problem that the message explains well enough to be shown as it is."""


class ParameterError(RskdError, ValueError):
    """A parameter is outside of what is possible for this input."""


class FileError(RskdError):
    """A file cannot be read or written, or is not what it should be."""


class ModelError(RskdError):
    """Weights cannot be used: unknown, unsafe, or made for something else."""


class DataError(RskdError):
    """Training data is missing, unpaired, or inconsistent."""


class ResourceError(RskdError):
    """Memory, disk or device ran out."""


class EngineError(RskdError):
    """The process that does the work ended or failed without explaining itself."""
