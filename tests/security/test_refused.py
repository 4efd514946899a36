"""A cluster that does not let somebody in: one line at once that names what was refused and what to set."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka import errors as kafka_error
from support.certificates import DAY
from support.processes import Distillog, write_properties
from support.proxy import Proxies, free_ports
from support.secured_broker import SECRET, SecuredBroker

from pipeline.kafka.clients import new_admin, new_consumer, new_producer
from pipeline.kafka.refusals import why_refused
from pipeline.kafka.settings import KafkaSettings
from schemas.errors import BrokerUnavailable, NotAdmitted

pytestmark = pytest.mark.kafka

PATIENCE = 60.0
"""Seconds for which the client would look for a broker..."""
AT_ONCE = 10.0
"""... and in which it must be told, on a machine that has much else to do."""
FILE = "--kafka-config"

Made = Callable[[SecuredBroker], KafkaSettings]


def with_alice(broker: SecuredBroker, **options: object) -> KafkaSettings:
    broker.add_user("alice")
    return broker.login("alice", **options)  # type: ignore[arg-type]


def plain(broker: SecuredBroker, **options: object) -> KafkaSettings:
    """The plain listener, which asks for nothing."""
    return KafkaSettings(broker.local.bootstrap_servers, options)


def garbage(broker: SecuredBroker) -> str:
    file = broker.authority.file.with_name("garbage.pem")
    file.write_text("nothing of the kind")
    return str(file)


LOGIN = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_plain_username": "alice", "sasl_plain_password": SECRET}
CASES: dict[str, tuple[Made, tuple[str, ...]]] = {
    "a wrong password": (
        lambda b: with_alice(b, sasl_plain_password=f"{SECRET}-wrong"),
        ("refuses user 'alice' (SCRAM-SHA-512): wrong name or password", "set sasl.username and sasl.password", FILE),
    ),
    "a wrong password by SCRAM-SHA-256": (
        lambda b: with_alice(b, sasl_plain_password=f"{SECRET}-wrong", sasl_mechanism="SCRAM-SHA-256"),
        ("refuses user 'alice' (SCRAM-SHA-256): wrong name or password",),
    ),
    "a wrong password by PLAIN": (
        lambda b: b.login("plain", sasl_plain_password=f"{SECRET}-wrong", sasl_mechanism="PLAIN"),
        ("refuses user 'plain' (PLAIN): wrong name or password (it says: Authentication failed: Invalid username or",),
    ),
    "an unknown user": (lambda b: b.login("nobody"), ("refuses user 'nobody' (SCRAM-SHA-512)",)),
    "a wrong password without TLS": (lambda b: b.login("nobody", "OPEN"), ("refuses user 'nobody'",)),
    "no password": (lambda b: b.login("alice", sasl_plain_password=None), ("needs a name and a password",)),
    "no mechanism": (lambda b: b.login("alice", sasl_mechanism=None), ("security.protocol=SASL_SSL needs a login",)),
    "a mechanism that is not offered": (
        lambda b: b.login("plain", "OPEN", sasl_mechanism="PLAIN"),
        ("offers no login by PLAIN: set sasl.mechanism to SCRAM-SHA-256 or SCRAM-SHA-512",),
    ),
    "an authority that did not sign": (
        lambda b: b.settings("TLS", ssl_cafile=str(b.strangers.file)),
        ("is not signed by the authority in", "strangers", "set ssl.ca.location to the certificate of", FILE),
    ),
    "no authority": (
        lambda b: b.settings("TLS", ssl_cafile=None),
        ("is not signed by an authority that this machine trusts: set ssl.ca.location",),
    ),
    "an authority's file that holds none": (
        lambda b: b.settings("TLS", ssl_cafile=garbage(b)),
        ("ssl.ca.location: ", "garbage.pem holds nothing in PEM form"),
    ),
    "a broker's certificate for another host": (
        lambda b: b.settings("OTHER"),
        ("is for another name", "set ssl.check.hostname=false"),
    ),
    "a broker's certificate that has expired": (
        lambda b: b.settings("OLD"),
        ("(certificate has expired): renew it there",),
    ),
    "a broker's certificate that was revoked": (
        lambda b: b.settings("TLS", ssl_crlfile=str(b.authority.revoke(b.certificate))),
        ("is revoked by the list in ", "revoked.pem (ssl.crlfile)"),
    ),
    "a broker's certificate that was revoked, behind a login": (
        lambda b: with_alice(b, ssl_crlfile=str(b.authority.revoke(b.certificate))),
        ("is revoked by the list in ", "revoked.pem (ssl.crlfile)"),
    ),
    "a list of revoked certificates of strangers": (
        lambda b: b.settings("TLS", ssl_crlfile=str(b.strangers.revoke())),
        ("revoked.pem (ssl.crlfile) holds no list of the authority that signed",),
    ),
    "a list of revoked certificates that has expired": (
        lambda b: b.settings("TLS", ssl_crlfile=str(b.authority.revoke(lasts=-DAY))),
        ("revoked.pem (ssl.crlfile) has expired: get the authority's newest",),
    ),
    "a list of revoked certificates that is none": (
        lambda b: b.settings("TLS", ssl_crlfile=garbage(b)),
        ("ssl.crlfile: ", "garbage.pem holds nothing in PEM form"),
    ),
    "certificates in the place of a list of revoked ones": (
        lambda b: b.settings("TLS", ssl_crlfile=str(b.authority.file)),
        ("ssl.crlfile: ", "ca.pem is to hold lists of revoked certificates in PEM form, no more"),
    ),
    "a client's certificate that has expired": (
        lambda b: b.with_certificate(b.authority.issue("alice", lasts=-DAY)),
        ("refuses the certificate in ", "certificate.pem, which expired on 2", "renew it"),
    ),
    "a client's certificate of strangers": (
        lambda b: b.with_certificate(b.strangers.issue("alice")),
        ("refuses the certificate in ", "signed by an authority that the brokers trust", "ssl.certificate.location"),
    ),
    "no client's certificate": (
        lambda b: b.settings("MUTUAL"),
        ("wants a certificate of its clients: set ssl.certificate.location and ssl.key.location",),
    ),
    "no client's certificate by TLS 1.2": (
        lambda b: b.settings("MUTUAL12"),
        ("or wants a certificate of its clients: set ssl.certificate.location and ssl.key.location",),
    ),
    "a client's certificate of strangers by TLS 1.2": (
        lambda b: b.with_certificate(b.strangers.issue("alice"), "MUTUAL12"),
        ("refuses the certificate in ", "signed by an authority that the brokers trust"),
    ),
    "a wrong password of the key": (
        lambda b: b.with_certificate(b.authority.issue("alice", password=SECRET), ssl_password=f"{SECRET}-wrong"),
        ("ssl.key.password does not open the private key in ", "key.pem"),
    ),
    "a key that is encrypted, and no password": (
        lambda b: b.with_certificate(b.authority.issue("alice", password=SECRET)),
        ("the private key in ", "key.pem is encrypted: set ssl.key.password"),
    ),
    "a key of another certificate": (
        lambda b: b.with_certificate(b.authority.issue("alice"), ssl_keyfile=str(b.authority.issue("bob").key)),
        ("is not that of the certificate in",),
    ),
    "a certificate without its key": (
        lambda b: b.with_certificate(b.authority.issue("alice"), ssl_keyfile=None),
        ("ssl.certificate.location: ", "holds no private key in PEM form; set ssl.key.location"),
    ),
    "TLS to a plain listener": (
        lambda b: plain(b, security_protocol="SSL", ssl_cafile=str(b.authority.file)),
        ("speaks no TLS: set security.protocol=PLAINTEXT instead of SSL", FILE),
    ),
    "TLS to a listener that has a login alone": (
        lambda b: KafkaSettings(b.address("OPEN"), {**LOGIN, "security_protocol": "SASL_SSL"}),
        ("speaks no TLS: set security.protocol=SASL_PLAINTEXT instead of SASL_SSL",),
    ),
    "no TLS to a listener that speaks it": (
        lambda b: KafkaSettings(b.address("TLS")),
        ("speaks TLS: set security.protocol=SSL instead of PLAINTEXT", FILE),
    ),
    "no TLS to one that wants certificates": (
        lambda b: KafkaSettings(b.address("MUTUAL")),
        ("speaks TLS: set security.protocol=SSL instead of PLAINTEXT",),
    ),
    "a login without TLS": (
        lambda b: KafkaSettings(b.address("LOGIN"), {**LOGIN, "security_protocol": "SASL_PLAINTEXT"}),
        ("speaks TLS: set security.protocol=SASL_SSL instead of SASL_PLAINTEXT",),
    ),
    "a login where there is none": (
        lambda b: plain(b, **LOGIN, security_protocol="SASL_PLAINTEXT"),
        ("takes no login: set security.protocol=PLAINTEXT instead of SASL_PLAINTEXT",),
    ),
    "a login over TLS where there is none": (
        lambda b: b.settings("TLS", **LOGIN, security_protocol="SASL_SSL"),
        ("takes no login: set security.protocol=SSL instead of SASL_SSL",),
    ),
    "no login where one is wanted": (
        lambda b: KafkaSettings(b.address("OPEN")),
        ("asks for a login: set security.protocol=SASL_PLAINTEXT instead of PLAINTEXT", "SCRAM-SHA-256"),
    ),
    "TLS alone where a login is wanted": (
        lambda b: b.settings("LOGIN", security_protocol="SSL"),
        ("asks for a login: set security.protocol=SASL_SSL instead of SSL", "(there: PLAIN or SCRAM-SHA-256"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_at_once_in_one_line(case: str, secured_broker: SecuredBroker, tmp_path: Path) -> None:
    made, words = CASES[case]
    distillog = Distillog(made(secured_broker), tmp_path)
    patience = {"DISTILLOG_BOOTSTRAP_TIMEOUT": str(PATIENCE)}
    begun = time.monotonic()
    line = distillog.refuse("topics", "list", words=words, **patience)
    assert time.monotonic() - begun < AT_ONCE
    at_length = distillog.call("--verbose", "topics", "list", **patience)
    assert at_length.exit_code == 1
    assert SECRET not in line + at_length.output


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (f"LDAP away\n for  {SECRET}\x1b[2J", " (it says: LDAP away for ***[2J)"),
        (None, ""),
        ("x" * 500, f" (it says: {'x' * 200})"),
    ],
)
def test_the_brokers_words_are_one_short_line_without_a_secret(said: str | None, told: str) -> None:
    error = kafka_error.SaslAuthenticationFailedError(f"SaslAuthenticationFailedError: {said}")
    options = {"sasl_mechanism": "PLAIN", "sasl_plain_username": "ann", "sasl_plain_password": SECRET}
    text = why_refused(error, "k", 9, options, ask=False)
    assert text.startswith(f"Kafka at k:9 refuses user 'ann' (PLAIN): wrong name or password{told}; set sasl.username")


@pytest.mark.parametrize("client", [new_admin, new_producer, new_consumer])
def test_every_client_is_told_and_the_next_one_too(
    client: Callable[[KafkaSettings], object], secured_broker: SecuredBroker
) -> None:
    for settings in (secured_broker.login("nobody"), secured_broker.settings("MUTUAL")):
        for _ in range(2):
            with pytest.raises(NotAdmitted):
                client(settings)


def test_one_address_that_refuses_ends_nothing_where_another_lets_in(secured_broker: SecuredBroker) -> None:
    for _ in range(8):  # the client begins with any of them
        settings = secured_broker.settings("TLS")
        both = replace(settings, bootstrap_servers=f"{secured_broker.address('OLD')},{settings.bootstrap_servers}")
        admin = new_admin(both)
        try:
            assert isinstance(admin.list_topics(), list)
        finally:
            admin.close()
        assert not both.standing.refusal


def test_addresses_that_all_refuse_are_believed_at_once(secured_broker: SecuredBroker) -> None:
    addresses = ",".join(map(secured_broker.address, ("OLD", "OTHER")))
    begun = time.monotonic()
    with pytest.raises(NotAdmitted, match=r"has expired|for another name"):
        new_admin(replace(secured_broker.settings("OLD"), bootstrap_servers=addresses))
    assert time.monotonic() - begun < AT_ONCE


def test_one_that_refuses_is_believed_where_no_other_answers(
    secured_broker: SecuredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLOG_BOOTSTRAP_TIMEOUT", "4")
    (silent,) = free_ports(1)
    addresses = f"127.0.0.1:{silent},{secured_broker.address('OLD')}"
    with pytest.raises(NotAdmitted, match="has expired"):
        new_admin(replace(secured_broker.settings("OLD"), bootstrap_servers=addresses))


def test_a_missing_or_misspelt_name_in_the_file_is_told_with_its_line(tmp_path: Path) -> None:
    settings = KafkaSettings("127.0.0.1:9", {"sasl_mechanism": "SCRAM-SHA-51"})
    distillog = Distillog(settings, tmp_path)
    distillog.refuse("topics", "list", words=("cluster.properties:2: sasl.mechanism must be one of PLAIN, SCRAM",))


def test_nobody_is_asked_for_a_password_at_the_terminal(secured_broker: SecuredBroker, tmp_path: Path) -> None:
    """A process of its own, whose OpenSSL could reach for a terminal."""
    settings = secured_broker.with_certificate(secured_broker.authority.issue("alice", password=SECRET))
    child = Distillog(settings, tmp_path).start("topics", "list")
    child.refuse("is encrypted: set ssl.key.password")
    assert "pass phrase" not in child.stdout + child.stderr


def test_a_key_that_its_password_opens_lets_in(secured_broker: SecuredBroker, tmp_path: Path) -> None:
    issued = secured_broker.authority.issue("admin", password=SECRET)
    settings = secured_broker.with_certificate(issued, ssl_password=SECRET)
    Distillog(settings, tmp_path).succeed("topics", "list")


def test_a_certificate_for_another_host_is_taken_where_names_are_not_checked(
    secured_broker: SecuredBroker, tmp_path: Path
) -> None:
    settings = secured_broker.settings("OTHER", ssl_check_hostname=False)
    Distillog(settings, tmp_path).succeed("topics", "list")


@pytest.mark.parametrize("client", [new_admin, new_producer, new_consumer])
@pytest.mark.parametrize("listener", ["TLS", "MUTUAL", "MUTUAL12"])
def test_a_list_of_revoked_certificates_without_the_brokers_lets_every_client_in(
    listener: str, client: Callable[[KafkaSettings], Any], secured_broker: SecuredBroker
) -> None:
    issued = secured_broker.authority.issue("admin")
    revoked = secured_broker.authority.revoke(issued)
    client(secured_broker.with_certificate(issued, listener, ssl_crlfile=str(revoked))).close()


def test_a_list_of_revoked_certificates_that_is_renewed_counts_from_the_next_connection_on(
    secured_broker: SecuredBroker,
) -> None:
    authority = secured_broker.authority
    revoked = authority.revoke()
    settings = secured_broker.settings("TLS", ssl_crlfile=str(revoked))
    admin = new_admin(settings)
    try:
        admin.list_topics()
        text = revoked.read_bytes()
        revoked.write_text("half a list")
        reconnect(admin)
        assert not settings.standing.refusal, "a file that was being written refused for good"
        revoked.write_bytes(text)
        reconnect(admin)
        admin.list_topics()
        revoked.write_bytes(authority.revoke(secured_broker.certificate).read_bytes())
        deadline = time.monotonic() + 60.0
        while not settings.standing.refusal:
            assert time.monotonic() < deadline, "nothing was refused"
            reconnect(admin)
        assert "is revoked by the list in" in settings.standing.refusal
    finally:
        admin.close()


@pytest.mark.parametrize("listener", ["TLS", "LOGIN", "OPEN"])
@pytest.mark.parametrize("trouble", ["refuse", "stall"])
def test_a_wire_that_is_cut_or_held_up_is_no_refusal(
    listener: str, trouble: str, secured_broker: SecuredBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a broker that restarts, or is frozen, looks like: connections that end or hang in their handshake."""
    monkeypatch.setenv("DISTILLOG_BOOTSTRAP_TIMEOUT", "4")
    proxies = Proxies()
    try:
        (port,) = free_ports(1)
        proxy = proxies.add(port, int(secured_broker.address(listener).rpartition(":")[2]))
        getattr(proxy, trouble)()
        settings = KafkaSettings(f"127.0.0.1:{port}", secured_broker.login("admin", listener).options)
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="no answer from Kafka"):
            new_admin(settings)
        assert time.monotonic() - begun < 30.0
        assert not settings.standing.refusal
    finally:
        proxies.close()


def reconnect(admin: KafkaAdminClient) -> None:
    """End the client's connection and ask for something, whether it is answered or not."""
    if connection := admin._manager._conns.get(1):
        admin._net.call_soon_threadsafe(connection.close)
    time.sleep(0.5)
    with suppress(Exception):
        admin.list_topics()


def test_a_certificate_that_expires_under_a_client_ends_it_at_its_next_connection(
    secured_broker: SecuredBroker,
) -> None:
    settings = secured_broker.with_certificate(secured_broker.authority.issue("admin", lasts=timedelta(seconds=6)))
    admin = new_admin(settings)
    try:
        admin.list_topics()
        deadline = time.monotonic() + 60.0
        while not settings.standing.refusal:
            assert time.monotonic() < deadline, "nothing was refused"
            reconnect(admin)
        assert "which expired on 2" in settings.standing.refusal
        with pytest.raises(NotAdmitted, match="expired"):
            new_admin(settings)
    finally:
        admin.close()


def test_the_settings_are_written_as_users_write_them(secured_broker: SecuredBroker, tmp_path: Path) -> None:
    file = write_properties(secured_broker.login("alice"), tmp_path / "kafka.properties")
    assert KafkaSettings.load(None, file) == secured_broker.login("alice")
