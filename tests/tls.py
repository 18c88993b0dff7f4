"""A TLS terminator before a broker that has none, with certificates of its own."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey
SOON = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and what it has certified."""

    name: str
    key: Key
    certificate: x509.Certificate
    file: Path  #: its certificate

    def certify(self, name: str) -> tuple[Path, Path]:
        """The files of a certificate for 127.0.0.1 and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(name, key, self.certificate.subject, self.key, authority=False)
        certificate, private = self.file.with_name(f"{name}.pem"), self.file.with_name(f"{name}.key")
        certificate.write_bytes(made.public_bytes(Encoding.PEM))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, private


def make_authority(folder: Path, name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = _certificate(name, key, subject, key, authority=True)
    file = folder / f"{name}.pem"
    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    return Authority(name, key, certificate, file)


def _certificate(name: str, key: Key, issuer: x509.Name, by: Key, *, authority: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SOON)
        .not_valid_after(now + SOON)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(by, hashes.SHA256())
    )


@contextmanager
def terminating(authority: Authority, port: int) -> Iterator[int]:
    """The port at which TLS is spoken, with whoever shows a certificate of the authority, for a server at another."""
    words = [*map(str, authority.certify("server")), str(authority.file), str(port)]
    with subprocess.Popen([sys.executable, "-c", TERMINATOR, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


#: A process of its own: what it leaves open ends with it.
TERMINATOR = """
import asyncio, contextlib, ssl, sys

certificate, key, authority, port = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
context.load_verify_locations(authority)
context.verify_mode = ssl.CERT_REQUIRED


async def copy(source, to):
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            to.write(data)
            await to.drain()
    to.close()


async def serve(client, to_client):
    server, to_server = await asyncio.open_connection("127.0.0.1", int(port))
    await asyncio.gather(copy(client, to_server), copy(server, to_client))


async def main():
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # clients that are refused
    served = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(served.sockets[0].getsockname()[1], flush=True)
    await served.serve_forever()


asyncio.run(main())
"""
