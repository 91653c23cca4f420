"""Drivers: one SDK each, behind a port. They import ports and the foundation, never each other."""
