"""Secret sources; `drivers/registry.py` lists them."""
