"""Listening sockets: bind, activation, the descriptor store, ports. The package does not handle connections."""
