"""Tools to test adapters and devices, and this package: tiny models, a fake executor, conformance kits."""
