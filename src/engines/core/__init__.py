"""Core: portable types on the waist. Knows ports, never a driver."""
