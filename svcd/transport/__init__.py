"""The sockets: opened, listened on, counted, and guarded by the gate."""
