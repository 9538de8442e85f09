"""Shapes of HTTP requests, each with its section of RFC 9110 or 9112 and the behaviour that follows from it.

The conformance test sends them to the server in memory, the differential test to svcd, nginx and lighttpd.
"""

from __future__ import annotations

from tests.http_shapes.body_framing import BODY_FRAMING
from tests.http_shapes.conditional_requests import CONDITIONAL_REQUESTS
from tests.http_shapes.connection_management import CONNECTION_MANAGEMENT
from tests.http_shapes.field_lines import FIELD_LINES
from tests.http_shapes.range_requests import RANGE_REQUESTS
from tests.http_shapes.request_lines import REQUEST_LINES
from tests.http_shapes.shape import Ending, Shape
from tests.http_shapes.targets import TARGETS

__all__ = ["SHAPES", "Ending", "Shape"]

SHAPES = (
    *REQUEST_LINES,
    *TARGETS,
    *FIELD_LINES,
    *BODY_FRAMING,
    *CONNECTION_MANAGEMENT,
    *CONDITIONAL_REQUESTS,
    *RANGE_REQUESTS,
)
