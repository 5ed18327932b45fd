"""Models over HTTP, as the clients that people have expect them: OpenAI's API, llama-server's, and others.

This room alone needs the packages of the extra `server`. Nothing is imported here, so that nothing else needs them.
"""
