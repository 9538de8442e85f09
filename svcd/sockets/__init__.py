"""Listening sockets: bind, activation, the store of descriptors, ports. Knows no connection."""
