"""Import of an object by `package.module:name`. Imports little, for bare interpreters."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_object"]


def import_object(reference: str) -> Any:  # noqa: ANN401 - an object of any type
    """Import the module of `package.module:name` and return the object; the name may contain dots.

    Raises:
        ImportError: there is no such object; the text is the whole reason, in one line.
    """
    module, _, name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Not for a module that the named one imports.
        missing = bool(error.name) and f"{module}.".startswith(f"{error.name}.")
        remedy = "; name its directory by PYTHONPATH, or by python_path= with python=" if missing else ""
        raise ImportError(f"ModuleNotFoundError: {error}{remedy}") from error
    except Exception as error:
        raise ImportError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    except SystemExit as error:
        raise ImportError(f"{module} ends the program when it is imported") from error
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ImportError(str(error) or type(error).__name__) from error
    return found
