"""Why a cluster does not let us in, as one line: what was refused, and which property to set.

Only what was said counts, never a silence or a lost connection, which a broker that restarts may be: an answer to the
login, an alert, a certificate that does not verify, or what the listener says when it is asked in another way; and what
went wrong here, before anything could be said.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kafka import errors as kafka_error

from pipeline.kafka.credentials import valid_until
from pipeline.kafka.listener import Listener, ask_listener
from pipeline.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)

_WHERE = "in the Kafka properties (--kafka-config)"
_OTHER_NAME = (62, 64)
"""OpenSSL's codes for a certificate that is of another host or address..."""
_OUT_OF_TIME = (9, 10)
"""... that is not valid yet, or no more..."""
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
"""... that nobody signed whom we trust..."""
_REVOKED = 23
"""... that was revoked..."""
_NO_LIST, _OLD_LIST = 3, 12
"""... for which there is no list of revoked ones, or one that has expired."""
_LONGEST = 200
"""Characters of a broker's words that are passed on."""
_DOUBT = 10.0
"""Seconds for which a login that was good before is tried on."""
_PASSING_ALERTS = ("INTERNAL_ERROR", "USER_CANCEL", "CLOSE_NOTIFY")


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges lost connections, and ends all clients of these settings where one was refused for good."""

    settings: KafkaSettings

    def refusal(self, error: BaseException, host: str, port: int, ask: bool) -> str:
        """Say why a connection was refused and would be again; see `why_refused`.

        A login that was good before is refused, too, where the user store behind the broker is away for a moment.
        """
        text, standing = why_refused(error, host, port, self.settings.options, ask), self.settings.standing
        if not (text and standing.let_in and isinstance(error, kafka_error.SaslAuthenticationFailedError)):
            return text
        if standing.refused_since is None:
            standing.refused_since = time.monotonic()
            log.warning("%s; it was good before, trying on for %.0f s", text, _DOUBT)
        return text if time.monotonic() - standing.refused_since > _DOUBT else ""

    def let_in(self) -> None:
        """Take note that a connection was made, login and all."""
        self.settings.standing.let_in, self.settings.standing.refused_since = True, None

    def believe(self, refusal: str) -> None:
        """Let every client end its next call with it."""
        self.settings.standing.refusal = refusal


def why_refused(error: BaseException, host: str, port: int, options: Mapping[str, Any], ask: bool) -> str:
    """Say why a connection to a broker was lost, if trying again cannot help; empty if it may.

    Args:
        error: what kafka-python says of it.
        host, port: the broker's.
        options: how the client tried to be let in.
        ask: where nothing was said, ask the listener what it speaks; that may take some seconds.
    """
    at = f"{host}:{port}"
    if isinstance(error, kafka_error.SaslAuthenticationFailedError):
        return _login(error, at, options)
    tls = _tls_error(error)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return _their_certificate(tls, at, options)
    if tls is not None and (text := _alert(tls.reason or "", at, options)):
        return text
    said = isinstance(error, kafka_error.UnsupportedSaslMechanismError | kafka_error.IllegalSaslStateError)
    if not (said or ask):
        return ""
    if unmeant := _unmeant(error):
        return f"Kafka at {at} cannot be asked: {type(unmeant).__name__}: {' '.join(str(unmeant).split())}"
    listener = ask_listener(host, port, options)
    return "" if listener is None else _difference(listener, at, options)


def _login(error: BaseException, at: str, options: Mapping[str, Any]) -> str:
    mechanism, said = options.get("sasl_mechanism"), _words(error, options)
    if mechanism == "GSSAPI":
        return f"Kafka at {at} refuses the login by GSSAPI{said}: see the Kerberos ticket and sasl.kerberos.* {_WHERE}"
    return (
        f"Kafka at {at} refuses user {options.get('sasl_plain_username')!r} ({mechanism}): wrong name or password"
        f"{said}; set sasl.username and sasl.password {_WHERE}"
    )


def _words(error: BaseException, options: Mapping[str, Any]) -> str:
    """The broker's own words, which may be of a user store that is away; empty if it said none.

    A broker says what it likes: without our password, and nothing that would move a terminal's cursor.
    """
    text = str(error.args[0]) if error.args else ""
    text = text.partition(": ")[2]  # behind the name of the error's code
    if secret := options.get("sasl_plain_password"):
        text = text.replace(str(secret), "***")
    text = "".join(each for each in " ".join(text.split()) if each.isprintable())[:_LONGEST]
    return f" (it says: {text})" if text not in ("", "None") else ""


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """The error of TLS that a connection was lost by."""
    return next((one for one in (error, *error.args) if isinstance(one, ssl.SSLError)), None)


def _unmeant(error: BaseException) -> BaseException | None:
    """The error of a connection that never was one: an address that is no name, no ticket of Kerberos, a mistake."""
    said = (one for one in (error, *error.args) if isinstance(one, Exception))
    return next((one for one in said if not isinstance(one, kafka_error.KafkaError | OSError)), None)


def _their_certificate(error: ssl.SSLCertVerificationError, at: str, options: Mapping[str, Any]) -> str:
    authority, revoked = options.get("ssl_cafile"), options.get("ssl_crlfile")
    said = error.verify_message.rstrip(".")
    if error.verify_code in _OTHER_NAME:
        return (
            f"the certificate of Kafka at {at} is for another name ({said}): give an address that is "
            f"in it, or set ssl.check.hostname=false {_WHERE}"
        )
    if error.verify_code in _OUT_OF_TIME:
        text = f"the certificate of Kafka at {at} is out of its time ({error.verify_message})"
        return f"{text}: renew it there, or set this machine's clock right"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        whom = f"the authority in {authority}" if authority else "an authority that this machine trusts"
        return (
            f"the certificate of Kafka at {at} is not signed by {whom}: set ssl.ca.location to the certificate of the "
            f"brokers' authority {_WHERE}"
        )
    if error.verify_code == _REVOKED:
        return f"the certificate of Kafka at {at} is revoked by the list in {revoked} (ssl.crlfile): renew it there"
    if error.verify_code == _NO_LIST:
        return (
            f"{revoked} (ssl.crlfile) holds no list of the authority that signed the certificate of Kafka at {at}: add "
            "it to that file"
        )
    if error.verify_code == _OLD_LIST:
        return f"the list of revoked certificates in {revoked} (ssl.crlfile) has expired: get the authority's newest"
    return f"the certificate of Kafka at {at} does not verify ({said}): see ssl.ca.location and ssl.crlfile {_WHERE}"


def _alert(reason: str, at: str, options: Mapping[str, Any]) -> str:
    """What a broker said to end a handshake; empty where it said nothing that lasts."""
    if "ALERT" not in reason or any(passing in reason for passing in _PASSING_ALERTS):
        return ""
    said = reason.rpartition("ALERT_")[2].replace("_", " ").lower()
    ours = options.get("ssl_certfile")
    of_ours = any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED"))
    wanted = f"wants a certificate of its clients: set ssl.certificate.location and ssl.key.location {_WHERE}"
    if not of_ours:
        text = f"Kafka at {at} refuses the TLS handshake ({said}): it knows no TLS version or cipher that we know"
        return text if ours else f"{text}, or {wanted}"  # by TLS 1.2 Java does not say which
    if not ours:
        return f"Kafka at {at} {wanted}"
    if expired := _expired(Path(ours)):
        return f"Kafka at {at} refuses the certificate in {ours}, which expired on {expired}: renew it"
    return (
        f"Kafka at {at} refuses the certificate in {ours} ({said}): set ssl.certificate.location and ssl.key.location "
        f"to one that is signed by an authority that the brokers trust, {_WHERE}"
    )


def _expired(certificate: Path) -> str:
    """The day on which it did; empty if it did not, or nobody knows."""
    try:
        until = valid_until(certificate)
    except (OSError, ValueError, IndexError):
        return ""
    return f"{until:%Y-%m-%d}" if until < datetime.now(UTC) else ""


def _difference(listener: Listener, at: str, options: Mapping[str, Any]) -> str:
    """In what the listener differs from the options; empty if in nothing that is known."""
    protocol, mechanism = options.get("security_protocol", "PLAINTEXT"), options.get("sasl_mechanism")
    tls, login = protocol.endswith("SSL"), protocol.startswith("SASL")
    asks = login if listener.mechanisms is None else bool(listener.mechanisms)
    right = f"{'SASL_' if asks else ''}{'SSL' if listener.tls else 'PLAINTEXT'}"
    instead = f"set security.protocol={right} instead of {protocol} {_WHERE}"
    if listener.tls != tls:
        speaks = "speaks TLS" if listener.tls else "speaks no TLS"
        return f"the listener of Kafka at {at} {speaks}: {instead}, or give the address of another listener"
    if listener.mechanisms is None:
        return ""
    offered = " or ".join(listener.mechanisms)
    if login and not asks:
        return f"the listener of Kafka at {at} takes no login: {instead}, or give the address of another listener"
    if asks and not login:
        return (
            f"the listener of Kafka at {at} asks for a login: {instead}, with sasl.mechanism (there: {offered}), "
            "sasl.username and sasl.password"
        )
    if asks and mechanism not in listener.mechanisms:
        return f"the listener of Kafka at {at} offers no login by {mechanism}: set sasl.mechanism to {offered} {_WHERE}"
    return ""
