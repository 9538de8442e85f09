"""The status service: metrics of the daemon as an HTML page, as JSON, and for Prometheus."""
