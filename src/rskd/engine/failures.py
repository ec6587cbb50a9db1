"""Turn any exception into one sentence that a user can act on."""

from __future__ import annotations

import errno

from pydantic import ValidationError

from rskd.errors import EngineError, FileError, ParameterError, ResourceError, RskdError, is_out_of_memory

_DOING = {
    "inspect": "reading the weights",
    "segment": "segmenting",
    "batch": "segmenting a folder",
    "rank": "ranking the tokens",
    "contourlet": "computing the contourlet sub-bands",
    "evaluate": "evaluating",
    "train": "training",
    "distill": "distilling",
    "resume": "resuming the run",
}
_LESS = {
    "segment": "smaller tiles or a smaller batch size",
    "evaluate": "smaller tiles or a smaller batch size",
    "train": "a smaller batch size or smaller patches",
    "distill": "a smaller batch size or smaller patches",
    "contourlet": "a smaller image or fewer levels",
}
_GPU = ("cuda", "cublas", "cudnn", "mps", "hip")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def explain(error: Exception, *, kind: str = "") -> RskdError:
    """Return `error` as an `RskdError` with one sentence.

    Parameters
    ----------
    error
        What happened.
    kind
        Kind of the job that was running.

    Examples
    --------
    >>> explain(MemoryError(), kind="rank")
    ResourceError('The computer ran out of memory while ranking the tokens: close other images or use a smaller image.')
    """
    if isinstance(error, RskdError):
        return error
    doing = _DOING.get(kind, "working")
    if is_out_of_memory(error):
        return _memory(error, doing, _LESS.get(kind, "a smaller image"))
    if isinstance(error, ValidationError):
        return ParameterError(_invalid(error))
    if isinstance(error, OSError) and (error.errno in _DISK_FULL):
        where = f" at {error.filename}" if error.filename else ""
        return ResourceError(f"The disk is full{where}: free some space and try again.")
    if isinstance(error, OSError) and error.filename is not None:
        return FileError(f"{error.filename}: {(error.strerror or str(error)).lower()}.")
    if isinstance(error, ImportError):
        return EngineError(
            f"A library that {doing} needs cannot be loaded ({_first_line(error)}): reinstall napari-rskd."
        )
    return EngineError(f"{type(error).__name__} while {doing}: {_first_line(error)}")


def _memory(error: Exception, doing: str, less: str) -> ResourceError:
    text = str(error).lower()
    if any(sign in text for sign in _GPU):
        return ResourceError(f"The GPU ran out of memory while {doing}: use {less}, or choose the device cpu.")
    return ResourceError(f"The computer ran out of memory while {doing}: close other images or use {less}.")


def _invalid(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    loc = first["loc"][1:] if first["loc"][:1] and first["loc"][0] in _DOING else first["loc"]  # not the job's kind
    where = ".".join(str(part) for part in loc)
    what = first["msg"].removeprefix("Value error, ")
    if where and first["type"] != "value_error" and isinstance(first["input"], str | int | float):
        where += f"={first['input']}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where + ': ' if where else ''}{what[:1].lower() + what[1:]}{more}."


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") + "." if lines else "no reason was given."
