"""What every request passes through, as pure ASGI: nothing is done per token but a call."""
