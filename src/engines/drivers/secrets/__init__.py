"""Secret sources; `drivers/registry.py` lists them. What two of them share over HTTP is in `web.py`."""
