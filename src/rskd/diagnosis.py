"""A file for whoever is to find out why something does not work here: nothing in it says who anybody is.

Of the log files it takes only what a traceback says about the program: where, in which module, and the kind of error.
What an error says in words may name a file, and so a person: it is left out.
"""

from __future__ import annotations

import getpass
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rskd.doctor import Finding
from rskd.engine.logs import log_folder
from rskd.io.files import write_atomically

LOGS = 5
"""Log files that are looked at, the newest."""
LINES = 200
"""Lines that are kept of each, the last ones."""
_PLACE = re.compile(r'^ *File "(?P<file>[^"]+)", line (?P<line>\d+),? in (?P<function>[\w<>.]+)$')
_KIND = re.compile(r"^(?P<kind>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit))(?::|$)")
_PATH = re.compile(r"(?:(?<![\w.:/\\])(?:[A-Za-z]:|~)?|\\)[\\/](?=\S).*", re.DOTALL)
_FATAL = re.compile(r"^Fatal Python error: (?P<what>[A-Za-z ]+)")
_FIXED = ("Traceback (most recent call last):", "Current thread", "Thread 0x")
_LIBRARIES = re.compile(
    r".*(?:(?:site-packages|dist-packages|lib/python3\.\d+)/|src/(?=(?:napari_)?rskd/))(?P<module>[\w./-]+\.py)$"
)


def write_diagnosis(
    path: Path, findings: Iterable[Finding], settings: Sequence[str] = (), *, logs: Path | None = None
) -> None:
    """Write the file.

    Parameters
    ----------
    path
        Text file to write.
    findings
        Of `rskd.doctor.examine`.
    settings
        What is set in the program, such as "device=cpu"; no names.
    logs
        Folder with log files; None = the user's.

    Raises
    ------
    FileError
        If it cannot be written.
    """
    lines = [
        "RSKD: diagnostic file. It holds no image, and no name of a file, a folder, a person or this computer.",
        "",
    ]
    lines += [f"{'ok  ' if each.good else 'FAIL'}  {each.name}: {without_names(each.text)}" for each in findings]
    lines += ["", *(f"setting  {setting}" for setting in settings)]
    for number, text in enumerate(_newest(log_folder() if logs is None else logs), 1):
        lines += ["", f"log {number}", *list(trace(text))[-LINES:]]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def without_names(text: str) -> str:
    """Return a text without the name and the computer of the user, and without any folder or file.

    What follows a path is left out as well, for nobody can tell where a path with spaces in it ends.

    Examples
    --------
    >>> without_names(f"3.11 ({sys.executable}) on {platform.node()}")
    '3.11 (<Python>) on <computer>'
    >>> without_names("Broken: /data/Jane Doe/scan.nii cannot be read.")
    'Broken: <a path>'
    """
    text = _PATH.sub("<a path>", text.replace(sys.executable, "<Python>"))
    for name, stand_in in ((platform.node(), "<computer>"), (_user(), "<user>")):
        if name:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stand_in, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        return ""


def trace(log: str) -> Iterator[str]:
    r"""Yield where errors came from and what kind they were, and nothing that they say.

    Examples
    --------
    >>> log = '''Reading /scans/Jane Doe.nii
    ... Traceback (most recent call last):
    ...   File "/home/joe/lib/python3.11/site-packages/rskd/run.py", line 12, in run
    ...     raise FileError(path)
    ... rskd.errors.FileError: Jane Doe.nii is damaged.'''
    >>> print("\n".join(trace(log)))
    Traceback (most recent call last):
      rskd/run.py, line 12, in run
    rskd.errors.FileError
    """
    for line in log.splitlines():
        if line.startswith(_FIXED):
            yield line if line.startswith(_FIXED[0]) else line.partition(" (")[0]
        elif place := _PLACE.match(line):
            module = _LIBRARIES.match(place["file"].replace("\\", "/"))
            yield f"  {module['module'] if module else 'a file'}, line {place['line']}, in {place['function']}"
        elif kind := _KIND.match(line):
            yield kind["kind"]
        elif fatal := _FATAL.match(line):
            yield fatal[0]


def _newest(folder: Path) -> Iterator[str]:
    """Yield the newest log files that hold anything."""
    files = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    texts = (path.read_text("utf-8", errors="replace") for path in files)
    found = (text for text in texts if text.strip())
    yield from (text for text, _ in zip(found, range(LOGS), strict=False))
