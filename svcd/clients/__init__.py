"""Clients of the small services and of HTTP, for svcctl; they work with any server."""
