"""Fixture and hypothesis profile of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("unit", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """Return the root of the checkout; skip the test if tests/ is not in one."""
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file() or not (root / "etc").is_dir():
        pytest.skip("not in a checkout: there is no pyproject.toml beside tests/")
    return root
