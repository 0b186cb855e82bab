"""Entry point of the devices that come with the server."""

from tgi.device import tgi_devices

__all__ = ["tgi_devices"]
