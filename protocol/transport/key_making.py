"""Making keys: a small CA and certificates of hosts, on the curve P-256.

A certificate says nothing but "of this CA": either side of a migration may be played with it, from any address. Nothing can be
revoked: a key that got into wrong hands is answered by a new CA.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.transport.keys import CA_CERTIFICATE, CA_KEY, HOST_CERTIFICATE, HOST_KEY

#: The CA outlives the hosts' keys, which are made anew from it.
CA_DAYS = 3650
HOST_DAYS = 825
#: Keys are valid at once on a host whose clock is behind by so much.
_CLOCKS_APART = timedelta(hours=1)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def make_ca(folder: Path, *, replace: bool = False) -> None:
    """Make a CA in `folder`; raises UsageError where there is one, unless it may be replaced."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: where two CAs are mixed up, "unknown issuer" says so, instead of a signature that does not fit.
    name = _named(f"pagefire CA {secrets.token_hex(4)}")
    certificate = (
        _certificate(name, name, key.public_key(), datetime.now(UTC) + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(folder, {CA_KEY: _pem(key), CA_CERTIFICATE: certificate.public_bytes(_ENCODING)}, replace=replace)


def make_host(ca_folder: Path, name: str, folder: Path, days: int = HOST_DAYS, *, replace: bool = False) -> None:
    """Make the keys of the host `name` in `folder`, with the CA in `ca_folder`; raises UsageError where there are some.

    `days` may be negative: for a test that needs an expired key.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a host", "letters, digits, dots and dashes are, 63 at most")
    ca_key, ca = _read_ca(ca_folder)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(datetime.now(UTC) + timedelta(days=days), ca.not_valid_after_utc)
    certificate = (
        _certificate(_named(name), ca.subject, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    files = {HOST_KEY: _pem(key), HOST_CERTIFICATE: certificate.public_bytes(_ENCODING)}
    if folder != ca_folder:
        files[CA_CERTIFICATE] = ca.public_bytes(_ENCODING)
    _write(folder, files, replace=replace)


_ENCODING = serialization.Encoding.PEM


def _certificate(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    since = min(datetime.now(UTC), until) - _CLOCKS_APART
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_ENCODING, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _read_ca(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"there is no CA in {folder}", str(error), "make one with `pagefire keys init`") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(
            f"the CA in {folder} is not pagefire's", "its key is on no elliptic curve", "use another --dir"
        )
    return key, certificate


def _write(folder: Path, files: dict[str, bytes], *, replace: bool) -> None:
    """Write all of the files or none where one is in the way; keys are born 0600, the folder 0700."""
    if not replace and (there := [name for name in files if (folder / name).exists()]):
        raise UsageError(
            f"there are keys in {folder} already",
            ", ".join(sorted(there)),
            "name another folder, or replace them with --force",
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, contents in files.items():
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()
            mode = 0o600 if name.endswith(".key") else 0o644
            with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(contents)
    except OSError as error:
        raise PagefireError(f"keys could not be written to {folder}", error.strerror or str(error), "") from error
