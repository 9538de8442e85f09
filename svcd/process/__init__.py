"""Handler processes: the zygote, launchers, runners, and the daemon's clients of them."""
