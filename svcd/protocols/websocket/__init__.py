"""WebSocket between clients and programs or servers that do not speak it (websocket=)."""
