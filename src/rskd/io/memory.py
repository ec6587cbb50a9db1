"""Refuse what no memory can hold, before memory is taken for it."""

from __future__ import annotations

from rskd.errors import FileError, ResourceError

_PACKED_LIMIT = 2000
"""No codec in use makes an image smaller by more than this factor."""


def check_size(name: str, promised: int, *, held: int) -> None:
    """Refuse an image that is too large for the memory, or for the file it is said to be in.

    Parameters
    ----------
    name
        Of the file.
    promised
        Bytes of the unpacked image, as the header says.
    held
        Bytes of the file.

    Raises
    ------
    FileError
        If so much cannot be packed into so little.
    ResourceError
        If less memory is free.

    Examples
    --------
    >>> check_size("scan.dcm", 10**6, held=10**5)
    """
    from psutil import virtual_memory

    if promised > held * _PACKED_LIMIT:
        raise FileError(f"{name} announces more voxels than it can hold: it is damaged, copy it again.")
    free = virtual_memory().available
    if promised > free:
        raise ResourceError(
            f"{name} is {promised / 1e9:.1f} GB unpacked, {free / 1e9:.1f} GB of memory are free: crop it."
        )
