"""What differs between systems: replacing a file that somebody reads, and locks. Windows is tried through the seams."""

import errno
import os
import sys
from types import SimpleNamespace

import pytest

from rskd import runs
from rskd.errors import FileError, ParameterError
from rskd.io import files


class Stubborn:
    """A system that refuses to replace a file some times, as Windows does while another program has it open."""

    def __init__(self, refusals, name="nt"):
        self.refusals, self.tried = refusals, 0
        self.system = SimpleNamespace(name=name, replace=self.replace, fsync=os.fsync)

    def replace(self, source, target):
        self.tried += 1
        if self.tried <= self.refusals:
            raise PermissionError(13, "Access is denied")
        os.replace(source, target)


@pytest.fixture
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=waits.append))
    return waits


def test_windows_waits_for_whoever_reads_the_file(tmp_path, monkeypatch, no_waiting):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    stubborn = Stubborn(refusals=3)
    monkeypatch.setattr(files, "os", stubborn.system)
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert no_waiting == [files.PAUSE] * 3


@pytest.mark.parametrize(("name", "tries"), [("nt", files.ATTEMPTS), ("posix", 1)])
def test_a_file_that_stays_open_is_one_sentence_and_stays_whole(tmp_path, monkeypatch, no_waiting, name, tries):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    stubborn = Stubborn(refusals=10**6, name=name)
    monkeypatch.setattr(files, "os", stubborn.system)
    with pytest.raises(FileError, match=r"last.ckpt cannot be written into .*: Access is denied"):
        files.write_atomically(path, b"new")
    assert stubborn.tried == tries
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


class FakeMsvcrt:
    """The locks of Windows: a byte of a file belongs to whoever locked it first."""

    LK_NBLCK = 2

    def __init__(self):
        self.owners = {}

    def locking(self, descriptor, mode, count):
        assert (mode, count) == (self.LK_NBLCK, 1)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0  # always the same byte
        key = os.fstat(descriptor).st_ino
        if self.owners.setdefault(key, descriptor) != descriptor:
            raise OSError(13, "Permission denied")


def test_the_lock_of_windows_is_asked_for_without_waiting(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "msvcrt", FakeMsvcrt())
    monkeypatch.setattr(files.sys, "platform", "win32")
    with (tmp_path / "lock").open("ab") as mine, (tmp_path / "lock").open("ab") as other:
        files._lock(mine)
        with pytest.raises(OSError, match="Permission denied"):
            files._lock(other)


def test_the_lock_of_this_system_is_opened_when_its_holder_ends(tmp_path):
    (tmp_path / "job.json").write_text("{}")
    folder = runs.RunFolder(tmp_path)
    with folder.locked(), pytest.raises(ParameterError, match="worked on by another process"), folder.locked():
        pass
    with folder.locked():
        pass


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EWOULDBLOCK, ParameterError, "wait for it"),
        (errno.EACCES, ParameterError, "wait for it"),
        (errno.EDEADLK, ParameterError, "wait for it"),
        (errno.ENOLCK, FileError, "gives no locks .No locks available.: choose a folder on another disk"),
        (errno.ENOTSUP, FileError, "gives no locks"),
    ],
)
def test_a_disk_without_locks_is_no_other_process(tmp_path, monkeypatch, code, kind, words):
    def refuse(file):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_lock", refuse)
    with pytest.raises(kind, match=words), files.locked(tmp_path / "lock", "wait for it"):
        pass
