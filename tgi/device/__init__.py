"""Devices that models run on: `base` defines every operation in plain torch, and a folder per device has what
that device does faster. Importing this package, or a device's folder, does not import torch."""
