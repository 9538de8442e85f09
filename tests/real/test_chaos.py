"""The short form of tests.chaos: faults of every kind at random, while two healthy services are watched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tests
from tests.real.daemon import PATIENCE, environment

_SECONDS = 8
#: How late a healthy service may be, in seconds: a machine that does much else is no failure, a loop that stands is.
_BOUND = 2
_NO_NAMESPACES = 77


@pytest.mark.load
def test_faults_are_their_own_services() -> None:
    """Broken services, reloads and upgrades are not felt by those that are whole, and the daemon stops in time."""
    root = Path(tests.__file__).parents[1]
    env = environment()
    env["PYTHONPATH"] += os.pathsep + str(root)
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(_SECONDS), "--bound", str(_BOUND)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=_SECONDS + 2 * PATIENCE)
    if done.returncode == _NO_NAMESPACES:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
