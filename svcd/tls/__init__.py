"""TLS of services: certificates, contexts, the TLS protocol, termination for handlers."""
