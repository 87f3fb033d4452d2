"""A server with OpenAI's API and a web chat, on the asynchronous engine (extra `serve`)."""
