"""The control plane: tenants, users, memberships, modes, products, keys, backends and routes, as data."""
