"""The request path, one module a stage; gateway.py is the order."""
