"""What can go wrong in a way that a user can act on.

Every message is one sentence that names what, where, the limit and the way out. None of these
derives from `RuntimeError`, which Qt worker threads swallow.
"""

import errno

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "alloc_failed",
    "bad_alloc",
    "bad allocation",
)


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


class LeftOffError(RskdError):
    """A run was left off before its end; it can go on from there."""


class EngineError(RskdError):
    """The process that does the work ended or failed without explaining itself."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says, in whatever way, that the memory did not suffice.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("CUDA out of memory")), is_out_of_memory(OSError("No such file"))
    (True, False)
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):  # torch's, without importing torch
        return True
    text = str(error).lower()
    of_a_network = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return of_a_network and any(sign in text for sign in _NO_MEMORY)
