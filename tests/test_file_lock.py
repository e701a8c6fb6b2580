"""A lock keeps other processes out, and nobody once its process is gone."""

import errno
import fcntl
import os
import signal
import time

import pytest

from sam_d2.errors import UserError
from sam_d2.file_lock import FileLock


def in_a_child(function):
    """Run ``function`` in a forked process; returns its id once it has said that it is ready, or its exit code."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            function()
            os.write(write, b"0")
            time.sleep(60)
        except UserError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    return pid, said


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_second_process_is_refused_until_the_first_is_gone(tmp_path):
    path = tmp_path / ".lock"
    pid, said = in_a_child(FileLock(path).acquire)
    assert said == "0"
    with pytest.raises(UserError, match=rf"{tmp_path}: another .* is at work on it \(process {pid} on .*or go away"):
        FileLock(path, ", or go away").acquire()
    end(pid)  # without a chance to remove the file
    assert path.exists()
    with FileLock(path) as lock:
        lock.acquire()
        lock.acquire()  # is no other one
        assert f"process {os.getpid()} on " in path.read_text()
    assert not path.exists()


def test_a_forked_process_does_not_keep_it(tmp_path):
    """Loader workers live some seconds longer than a training that is killed."""
    lock = FileLock(tmp_path / ".lock")
    lock.acquire()
    pid, _ = in_a_child(lambda: None)
    lock.release()
    again = FileLock(tmp_path / ".lock")
    again.acquire()
    again.release()
    end(pid)


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FileLock(tmp_path / ".lock") as lock:
        lock.acquire()
    assert "cannot be locked" in caplog.text and "see to it that one process uses it" in caplog.text
