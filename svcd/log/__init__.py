"""Log events, line formats, destinations, and the buffered writer."""
