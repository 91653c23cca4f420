"""Ports: what Engines asks of the outside, as Protocols and value types."""
