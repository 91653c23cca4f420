"""Engines: durable, multi-tenant state for agent applications."""
