"""The HTTP edge: bytes to a context and a store call, and what comes back to bytes."""
