"""Telling the service manager how we are."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from svcd.transport.notify import notify

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("abstract", [False, True])
def test_a_manager_hears_of_it(tmp_path: Path, abstract: bool) -> None:
    """States arrive as one datagram, at a path as at an abstract name."""
    name = f"svcd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(10)
        manager.bind(f"\0{name}" if abstract else name)
        notify(f"@{name}" if abstract else name, "READY=1", "STATUS=fine")
        assert manager.recv(100) == b"READY=1\nSTATUS=fine"
        notify(f"@{name}" if abstract else name, "STOPPING=1")
        assert manager.recv(100) == b"STOPPING=1"


def test_nobody_needs_to_listen(tmp_path: Path) -> None:
    """Without an address, at a missing or a dead one, nothing happens and nothing is raised."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "dead"))
    descriptors = os.listdir("/proc/self/fd")  # noqa: PTH208 - the names alone
    for address in (None, "", str(tmp_path / "missing"), str(tmp_path / "dead"), "@svcd-nobody", "x" * 300):
        notify(address, "READY=1")
    assert os.listdir("/proc/self/fd") == descriptors  # noqa: PTH208 - the names alone
