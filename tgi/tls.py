"""HTTPS: the certificate of --tls-cert and --tls-key, which may be read again while connections use it."""

import logging
import ssl
from pathlib import Path

import attrs

from .config import OptionError, Options

log = logging.getLogger(__name__)
PROTOCOLS = ["h2", "http/1.1"]
"""Protocols that a client may choose from when it connects (ALPN)."""


@attrs.define(eq=False)
class Certificate:
    """Certificate and private key of the server. Made by `read_certificate`."""

    cert: Path
    key: Path
    """The same file as `cert` if that has both."""
    context: ssl.SSLContext
    """Context of all connections. A connection keeps the certificate that it began with."""

    def load(self) -> None:
        """Let new connections use what the files have now. Raises OptionError, and changes nothing, if it is
        no certificate with its key."""
        for context in (_new_context(), self.context):
            _load(context, self.cert, self.key)

    def load_again(self) -> None:
        """Do the same, but log an error instead of raising it."""
        try:
            self.load()
        except OptionError as error:
            log.error("%s; the certificate of before stays", error)
        else:
            log.info("%s was read again", self.cert)


def read_certificate(options: Options) -> Certificate | None:
    """Return the certificate of --tls-cert; None without it. Raises OptionError if it cannot be used."""
    if options.tls_cert is None:
        return None
    certificate = Certificate(options.tls_cert, options.tls_key or options.tls_cert, _new_context())
    certificate.load()
    return certificate


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # HTTP/2 forbids it (RFC 9113, 9.2.1)
    context.set_alpn_protocols(PROTOCOLS)
    return context


def _load(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    for flag, path, kind in (("--tls-cert", cert, "CERTIFICATE"), ("--tls-key", key, "PRIVATE KEY")):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise OptionError(f"{flag} {path} cannot be read: {error.strerror}") from error
        if b"ENCRYPTED" in text and flag == "--tls-key":
            raise OptionError(f"{flag} {path} has a passphrase: give a key without one")
        if f"{kind}-----".encode() not in text:
            missing = "certificate" if kind == "CERTIFICATE" else "private key"
            raise OptionError(f"{flag} {path} has no {missing} in PEM format")
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")  # never ask on the terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise OptionError(f"the key in {key} does not belong to the certificate in {cert}") from error
        raise OptionError(f"--tls-cert {cert} cannot be used: {error.reason or error}") from error
