"""Routing: which backend holds a kind for a scope, decided by data alone."""
