"""TLS of services: their certificates, the contexts made of them, and whom clients are found to be."""
