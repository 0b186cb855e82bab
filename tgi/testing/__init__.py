"""For tests here, of adapters and of devices: tiny models, a fake executor, conformance kits."""
