"""Facts about the machine: files, accounts, permissions, name resolution, load, systemd."""
