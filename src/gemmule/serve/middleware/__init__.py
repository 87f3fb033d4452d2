"""What every request passes before its handler, as pure ASGI.

Starlette's BaseHTTPMiddleware would copy each chunk of a stream through a queue and hide that a
client has left. Here a chunk costs at most one call that passes it on.
"""
