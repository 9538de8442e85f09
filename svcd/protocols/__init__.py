"""The built-in services: one Factory/Protocol pair each, and a DatagramProtocol where the service has one.

They see a transport and nothing else; whatever else they need (a clock, quotations, names) is an argument.
"""
