"""What the dimensions of a nameless array are."""

from __future__ import annotations

from rskd.errors import ParameterError


def guess_axes(shape: tuple[int, ...]) -> str:
    """Guess the axes of an array that does not name them.

    Parameters
    ----------
    shape
        Two to four dimensions; a further last one of 3 or 4 counts as colour.

    Raises
    ------
    ParameterError
        If there are fewer or more.

    Examples
    --------
    >>> guess_axes((64, 64)), guess_axes((64, 64, 3)), guess_axes((20, 64, 64)), guess_axes((5, 20, 64, 64))
    ('yx', 'yxc', 'zyx', 'tzyx')
    """
    colour = "c" if len(shape) > 2 and shape[-1] in (3, 4) else ""
    rest = len(shape) - len(colour)
    if not 2 <= rest <= 4:
        raise ParameterError(f"The shape {tuple(shape)} is no image: it needs 2 to 4 dimensions besides colour.")
    return "tzyx"[4 - rest :] + colour
