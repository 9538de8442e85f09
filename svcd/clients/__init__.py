"""Clients for the small services and for HTTP, used by svcctl; they work with any server."""
