"""Document drivers; `drivers/registry.py` lists them."""
