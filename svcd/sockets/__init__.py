"""Listening sockets: bind, activation, the descriptor store, ports. This package knows no connections."""
