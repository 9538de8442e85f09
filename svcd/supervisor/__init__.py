"""The services that run: how they start, change, and end."""
