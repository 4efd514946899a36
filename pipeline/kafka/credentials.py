"""What we show a cluster, looked at before it is asked: files that cannot be read, a key that does not open."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError


def check_credentials(options: Mapping[str, Any]) -> None:
    """Refuse what cannot let anybody in.

    Raises:
        ConfigError: a login without name or password, a file that cannot be read, a key that does not open.
    """
    protocol = options.get("security_protocol", "PLAINTEXT")
    if protocol.startswith("SASL"):
        _check_login(protocol, options)
    if protocol.endswith("SSL"):
        tls_context(options)


def tls_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """By what a broker is believed and what it is shown, from the files as they are now.

    kafka-python's own context takes no list of revoked certificates: it fails on `ssl_crlfile`, whatever that is.

    Raises:
        ConfigError: a file that cannot be read, or holds something else; a key that does not open.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = options.get("ssl_check_hostname", True)
    if revoked := options.get("ssl_crlfile"):
        with _reading("ssl.crlfile", revoked):
            context.load_verify_locations(revoked)
        held = context.cert_store_stats()
        if held["x509"] or not held["crl"]:  # a certificate in it would be trusted
            raise ConfigError(f"ssl.crlfile: {revoked} is to hold lists of revoked certificates in PEM form, no more")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if authority := options.get("ssl_cafile"):
        with _reading("ssl.ca.location", authority):
            context.load_verify_locations(authority)
    else:
        context.load_default_certs()
    load_certificate(context, options)
    return context


def load_certificate(context: ssl.SSLContext, options: Mapping[str, Any]) -> None:
    """Let a context show the certificate of the options, if they name one; raises ConfigError as above."""
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if not certificate:
        if key:
            raise ConfigError(f"ssl.key.location names {key}, and no certificate: set ssl.certificate.location, too")
        return
    with _reading("ssl.certificate.location", certificate):
        text = Path(certificate).read_text(encoding="ascii", errors="replace")
    if key:
        with _reading("ssl.key.location", key):
            text = Path(key).read_text(encoding="ascii", errors="replace")
    password = options.get("ssl_password") or ""
    if "PRIVATE KEY" not in text:
        name = "ssl.key.location" if key else "ssl.certificate.location"
        raise ConfigError(f"{name}: {key or certificate} holds no private key in PEM form; set ssl.key.location")
    if "ENCRYPTED" in text and not password:
        raise ConfigError(f"the private key in {key or certificate} is encrypted: set ssl.key.password")
    try:
        # Without a password, even an empty one, OpenSSL would ask at the terminal.
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"the private key in {key or certificate} is not that of the certificate in {certificate}: "
                "set ssl.certificate.location and ssl.key.location to a pair"
            ) from None
        if "ENCRYPTED" in text:
            raise ConfigError(
                f"ssl.key.password does not open the private key in {key or certificate}: set the right one"
            ) from None
        raise ConfigError(
            f"ssl.certificate.location, ssl.key.location: no certificate and key in PEM form in {certificate}"
            f"{f' and {key}' if key else ''} ({error.reason})"
        ) from None


def valid_until(certificate: Path) -> datetime:
    """When the first certificate of a PEM file expires.

    Raises:
        ValueError, IndexError, OSError: it is none.
    """
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = certificate.read_text(encoding="ascii", errors="replace")
    der = ssl.PEM_cert_to_DER_cert(text[text.index(begin) : text.index(end) + len(end)])
    # Certificate ::= {{version [0] OPTIONAL, serial, algorithm, issuer, validity {from, until}, ...}, ...}
    ((_, whole), *_) = _fields(der)
    ((_, signed), *_) = _fields(whole)
    fields = list(_fields(signed))
    _, validity = fields[4 if fields[0][0] == 0xA0 else 3]
    _, (_, until) = _fields(validity)
    moment = until.decode("ascii")
    if len(moment) == 13:  # a year of two digits: 50 is 1950
        moment = ("20" if moment < "50" else "19") + moment
    return datetime.strptime(moment, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _fields(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element of DER."""
    while der:
        begin, length = 2, der[1]
        if length & 0x80:
            begin += length & 0x7F
            length = int.from_bytes(der[2:begin], "big")
        yield der[0], der[begin : begin + length]
        der = der[begin + length :]


def _check_login(protocol: str, options: Mapping[str, Any]) -> None:
    mechanism = options.get("sasl_mechanism")
    if not mechanism:
        raise ConfigError(
            f"security.protocol={protocol} needs a login: set sasl.mechanism, sasl.username, sasl.password"
        )
    if mechanism == "GSSAPI":
        if importlib.util.find_spec("gssapi") is None:
            raise ConfigError("sasl.mechanism=GSSAPI needs the Python package gssapi: pip install gssapi")
        return
    for name in ("username", "password"):
        if not options.get(f"sasl_plain_{name}"):
            raise ConfigError(f"sasl.mechanism={mechanism} needs a name and a password: set sasl.{name}")


@contextmanager
def _reading(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError:
        raise ConfigError(f"{name}: {path} holds nothing in PEM form that would do") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from None
