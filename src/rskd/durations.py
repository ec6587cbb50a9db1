"""Times as people say them."""

from __future__ import annotations

_LIMITS = ((90.0, 1.0, "s", ".0f"), (5400.0, 60.0, "min", ".0f"), (float("inf"), 3600.0, "h", ".1f"))


def about(seconds: float) -> str:
    """Return a duration as one would say it.

    Examples
    --------
    >>> about(42), about(600), about(7300)
    ('about 42 s', 'about 10 min', 'about 2.0 h')
    """
    return f"about {' '.join(_amount(seconds))}"


def span(low: float, high: float) -> str:
    """Return between which durations something lies.

    Examples
    --------
    >>> span(500, 720), span(3000, 9000), span(230, 250)
    ('8 to 12 min', '50 min to 2.5 h', '4 min')
    """
    (first, unit), (last, other) = _amount(low), _amount(high)
    if (first, unit) == (last, other):
        return f"{last} {other}"
    return f"{first} to {last} {other}" if unit == other else f"{first} {unit} to {last} {other}"


def exactly(seconds: float) -> str:
    """Return a duration to the second, or to the minute where it took hours.

    Examples
    --------
    >>> exactly(42), exactly(125), exactly(3700)
    ('42 seconds', '2 min 5 s', '1 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} second{'s' * (whole != 1)}"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _amount(seconds: float) -> tuple[str, str]:
    """Return number and unit."""
    unit, name, form = next((unit, name, form) for limit, unit, name, form in _LIMITS if seconds < limit)
    return f"{seconds / unit:{form}}", name
