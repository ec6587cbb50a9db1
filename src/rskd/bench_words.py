"""What `rskd.bench` measured, as a table in text and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rskd.errors import ParameterError
from rskd.io.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {"torch": "torch", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
"""Runtimes, for people."""
_COLORS = ("#2e86ab", "#e4572e", "#5fad56", "#9b5de5", "#f2b134", "#00a6a6")
_HEADS = ("network", "M par.", "MB", "px", "GMACs", "runtime", "p50 ms", "p95 ms", "fps", "CPU ms", "ratio", "MiB")
_LEFT = ("network", "runtime")
REAL_TIME = 30
"""Images per second that are marked in the figure."""


def table(value: Mapping[str, Any]) -> str:
    """Return the figures of `rskd.bench.bench` as a table in plain text.

    Examples
    --------
    >>> row = {"network": "net", "runtime": "onnx", "size": 256, "p50": 20.0, "p95": 25.0, "fps": 50.0, "cpu": 19.0}
    >>> net = {"parameters": 300_000, "bytes": 1_200_000, "gmacs": {"256": 0.5}}
    >>> value = {"networks": {"net": net}, "rows": [row | {"ratio": 1.0, "peak_mib": None, "rounds": 9}]}
    >>> value |= {"pipeline": "one image", "threads": 1, "computer": {"processor": "a chip", "cores": 2}}
    >>> print(table(value).splitlines()[1])
    net        0.30  1.2  256   0.50  ONNX Runtime    20.0    25.0  50.0    19.0   1.00    –
    """
    lines = [_HEADS, *cells(value)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADS))]
    padded = (
        "  ".join(
            cell.ljust(width) if head in _LEFT else cell.rjust(width)
            for cell, width, head in zip(line, widths, _HEADS, strict=True)
        ).rstrip()
        for line in lines
    )
    return "\n".join([*padded, notes(value)])


def cells(value: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a line of words for every row, by network, then size, then runtime."""
    return [_line(value["networks"][row["network"]], row) for row in _sorted(value)]


def markdown(value: Mapping[str, Any]) -> str:
    """Return the figures as a table for the documentation."""
    rules = ["---" if head in _LEFT else "---:" for head in _HEADS]
    lines = [_HEADS, rules, *cells(value)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{notes(value)}\n"


def notes(value: Mapping[str, Any]) -> str:
    """Return what was timed, and on what."""
    rounds = {row["rounds"] for row in value["rows"]}
    count = f"{min(rounds)}" if len(rounds) == 1 else f"{min(rounds)} to {max(rounds)}"
    threads = value["threads"]
    return (
        f"{value['pipeline']}; {count} rounds in turn on {threads} thread{'s' * (threads != 1)} of "
        f"{value['computer']['processor']} ({value['computer']['cores']} cores). ratio: CPU time to that of the first "
        "network in the same runtime. MiB: peak memory of a process that does nothing else."
    )


def draw(value: Mapping[str, Any], path: Path) -> None:
    """Draw images per second, a panel per size and a bar per network and runtime.

    Raises
    ------
    ParameterError
        If the name ends neither in .svg nor in .png.
    """
    from matplotlib.figure import Figure

    check_figure(path)
    sizes = sorted({row["size"] for row in value["rows"]})
    height = 1.4 + 0.32 * max(sum(row["size"] == size for row in value["rows"]) for size in sizes)
    figure = Figure(figsize=(4.6 * len(sizes) + 1, height), layout="constrained")
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        _draw_size(axes, [row for row in _sorted(value) if row["size"] == size], list(value["networks"]))
        axes.set_title(f"{size} x {size} pixels")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150)


def check_figure(path: Path) -> None:
    """Raise `ParameterError` if no figure can have this name; to be asked before anything is measured."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise ParameterError(f"{path.name} is to be a figure: let its name end in .svg or .png.")


def _draw_size(axes: Axes, rows: Sequence[Mapping[str, Any]], networks: Sequence[str]) -> None:
    names = [f"{row['network']}, {NAMES[row['runtime']]}" for row in rows]
    colors = [_COLORS[networks.index(row["network"]) % len(_COLORS)] for row in rows]
    bars = axes.barh(names, [row["fps"] for row in rows], color=colors)
    axes.bar_label(bars, [f"{row['fps']:.3g}" for row in rows], padding=3)
    axes.axvline(REAL_TIME, color="0.4", linestyle="--", linewidth=1)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(f"images per second (dashed: {REAL_TIME})")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _sorted(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    places = list(value["networks"])
    return sorted(value["rows"], key=lambda row: (places.index(row["network"]), row["size"]))


def _line(network: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    gmacs, peak = network["gmacs"].get(str(row["size"])), row["peak_mib"]
    return (
        row["network"],
        f"{network['parameters'] / 1e6:.2f}",
        f"{network['bytes'] / 1e6:.1f}",
        str(row["size"]),
        "–" if gmacs is None else f"{gmacs:.2f}",
        NAMES[row["runtime"]],
        f"{row['p50']:.1f}",
        f"{row['p95']:.1f}",
        f"{row['fps']:.1f}",
        f"{row['cpu']:.1f}",
        f"{row['ratio']:.2f}",
        "–" if peak is None else f"{peak:.0f}",
    )
