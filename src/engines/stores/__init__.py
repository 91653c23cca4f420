"""The stores: one file a domain, written once on core, knowing no backend."""
