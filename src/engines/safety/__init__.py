"""Safety: the gate chain, which decides whether an action may happen and records that it decided."""
