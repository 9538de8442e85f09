"""A short run of tests.chaos: random faults while two healthy services are watched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tests
from tests.real.daemon import PATIENCE, environment

_SECONDS = 8
#: Bound for the response time of a healthy service, in seconds: a blocked event loop exceeds it, a loaded machine not.
_BOUND = 2
_NO_NAMESPACES = 77


@pytest.mark.load
def test_faults_do_not_affect_healthy_services() -> None:
    """Broken services, reloads and upgrades do not delay healthy services, and the daemon stops in time."""
    root = Path(tests.__file__).parents[1]
    env = environment()
    env["PYTHONPATH"] += os.pathsep + str(root)
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(_SECONDS), "--bound", str(_BOUND)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=_SECONDS + 2 * PATIENCE)
    if done.returncode == _NO_NAMESPACES:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
