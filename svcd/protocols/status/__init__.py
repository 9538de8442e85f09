"""The status service: what the daemon counted, as a page for people, as JSON, and as metrics for Prometheus."""
