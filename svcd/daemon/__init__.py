"""The process of the daemon: options, pid file, limits, signals."""
