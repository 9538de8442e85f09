"""Programs and Python functions that are started for a connection, each in a process of its own."""
