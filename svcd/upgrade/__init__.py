"""The hand-over of sockets from an old daemon to a new one."""
