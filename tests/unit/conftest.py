"""Fixtures and hypothesis profile of the unit tests."""

from __future__ import annotations

import stat
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


@pytest.fixture
def public_path(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a temporary directory that all users can enter; skip the test if they can't enter one above pytest's."""
    base = tmp_path_factory.getbasetemp()
    own = {base, *(each for each in base.parents if each.name.startswith("pytest-"))}
    for each in (tmp_path, *tmp_path.parents):
        if each in own or each.is_relative_to(base):
            # pytest made it.
            each.chmod(0o711)
        elif not each.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"other users may not enter {each}")
    return tmp_path
