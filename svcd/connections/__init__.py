"""Accepted connections: admission, tracking, timeouts, PROXY protocol, tcpmux, handlers in processes."""
