"""The built-in services: a Factory and a Protocol for each, and a DatagramProtocol if the service has datagrams.

They depend on a transport only; other objects that they need (a clock, quotations, a resolver) are arguments.
"""
