"""HTTPS: which files are refused, and that a running server takes new ones."""

import contextlib
import os
import shutil
import signal
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trustme

from tgi.config import OptionError, Options
from tgi.server import _Server, watch
from tgi.tls import Certificate, read_certificate

CA = trustme.CA()


def write(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """Write a new certificate and its key."""
    issued = CA.issue_cert(name)
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    return folder / "cert.pem", folder / "key.pem"


def certificate_of(cert: Path, key: Path) -> Certificate:
    made = read_certificate(Options(tls_cert=cert, tls_key=key))
    assert made is not None
    return made


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


def shakes_hands(server: ssl.SSLContext, name: str) -> str | None:
    """Let a client that trusts the authority connect in memory; return the protocol. Raises ssl.SSLError."""
    context, pipes = client_context(), (ssl.MemoryBIO(), ssl.MemoryBIO())
    context.set_alpn_protocols(["h2", "http/1.1"])
    ours = context.wrap_bio(pipes[0], pipes[1], server_hostname=name)
    theirs = server.wrap_bio(pipes[1], pipes[0], server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return ours.selected_alpn_protocol()


def a_directory(cert: Path, _: Path) -> None:
    cert.unlink()
    cert.mkdir()


def another_key(_: Path, key: Path) -> None:
    CA.issue_cert("localhost").private_key_pem.write_to_path(key)


def swap(cert: Path, key: Path) -> None:
    first, second = cert.read_bytes(), key.read_bytes()
    cert.write_bytes(second)
    key.write_bytes(first)


WRONG: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no certificate file": (
        lambda cert, _: cert.unlink(),
        "cert.pem cannot be read: No such file",
    ),
    "no key file": (lambda _, key: key.unlink(), "--tls-key .*key.pem cannot be read: No such file"),
    "a folder": (a_directory, "--tls-cert .*cert.pem cannot be read: Is a directory"),
    "an empty file": (lambda cert, _: cert.write_text(""), "--tls-cert .*cert.pem has no certificate in PEM"),
    "DER": (lambda cert, _: cert.write_bytes(b"\x30\x82\x01"), "cert.pem has no certificate in PEM"),
    "exchanged": (swap, "--tls-cert .*cert.pem has no certificate in PEM"),
    "a public key": (
        lambda _, key: key.write_text("-----BEGIN PUBLIC KEY-----"),
        "--tls-key .*key.pem has no private key in PEM",
    ),
    "a key with a passphrase": (
        lambda _, key: key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
        "--tls-key .*key.pem has a passphrase: give a key without one",
    ),
    "another certificate's key": (
        another_key,
        "key.pem does not belong to the certificate in .*cert.pem",
    ),
    "a certificate that was cut": (
        lambda cert, _: cert.write_bytes(cert.read_bytes()[:200]),
        "--tls-cert .*cert.pem cannot be used: ",
    ),
    "a certificate that is none": (
        lambda cert, _: cert.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        "--tls-cert .*cert.pem cannot be used: ",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), WRONG.values(), ids=WRONG)
def test_files_that_are_wrong_are_refused_by_name_and_cause(
    tmp_path: Path, spoil: Callable[[Path, Path], object], said: str
) -> None:
    cert, key = write(tmp_path)
    spoil(cert, key)
    with pytest.raises(OptionError, match=said):
        certificate_of(cert, key)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_key_that_may_not_be_read(tmp_path: Path) -> None:
    cert, key = write(tmp_path)
    key.chmod(0)
    with pytest.raises(OptionError, match=r"--tls-key .*key.pem cannot be read: Permission denied"):
        certificate_of(cert, key)


def test_a_key_alone_is_refused(tmp_path: Path) -> None:
    _, key = write(tmp_path)
    with pytest.raises(OptionError, match="--tls-key needs --tls-cert"):
        list(Options(tls_key=key).checked({}))


def test_one_file_may_have_both(tmp_path: Path) -> None:
    cert, key = write(tmp_path)
    cert.write_bytes(key.read_bytes() + cert.read_bytes())
    made = read_certificate(Options(tls_cert=cert))
    assert made is not None
    assert shakes_hands(made.context, "localhost") == "h2"


def test_there_is_no_tls_without_a_certificate() -> None:
    assert read_certificate(Options()) is None


async def test_a_sighup_takes_a_new_certificate_and_keeps_the_old_one_if_it_is_wrong(tmp_path: Path) -> None:
    cert, key = write(tmp_path, "first.example")
    server = _Server(Options(tls_cert=cert, tls_key=key))
    server.certificate = certificate_of(cert, key)
    context = server.certificate.context
    write(tmp_path, "second.example")
    server.take_signal(signal.SIGHUP)
    for _ in range(2):
        assert shakes_hands(context, "second.example") == "h2"
        with pytest.raises(ssl.SSLCertVerificationError):
            shakes_hands(context, "first.example")
        another_key(cert, key)
        server.take_signal(signal.SIGHUP)
    assert not server.stopping.is_set()


async def test_changed_files_are_noticed_however_they_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes points a link of its volumes to another folder; others write into the file."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_text("same size")
    link = tmp_path / "link"
    link.symlink_to(folders[0])
    changes: list[float] = []
    monkeypatch.setattr("tgi.server.LOOK_SECONDS", 0.01)

    async def until(count: int) -> None:
        with trio.fail_after(10):
            while len(changes) < count:
                await trio.sleep(0.01)
        assert len(changes) == count

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, [link / "file"], lambda: changes.append(trio.current_time()))
        await trio.sleep(0.1)
        assert not changes
        link.unlink()
        link.symlink_to(folders[1])
        await until(1)
        os.utime(folders[1] / "file", (1, 1))
        await until(2)
        shutil.rmtree(folders[1])
        await until(3)
        nursery.cancel_scope.cancel()
