"""A broker that lets in only whom it knows, and lets them do only what they may: TLS, logins and rights.

Its plain listener is the super user's (`anybody`), as LocalBroker needs it; all others are for tests:

    TLS      TLS; clients stay anonymous, and are the super user, too
    MUTUAL   TLS with a certificate of the client, whose common name is the user
    MUTUAL12 the same, by TLS 1.2 alone
    LOGIN    TLS, and a login by PLAIN (only "plain"), SCRAM-SHA-256 or SCRAM-SHA-512
    OPEN     the login by SCRAM alone, without TLS
    BRIEF    as OPEN, and it asks for the login again every 3 s
    OTHER    TLS with a certificate that is for another host
    OLD      TLS with a certificate that has expired

Nobody else may do anything until `allow` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)
from support.certificates import DAY, Authority, Issued
from support.proxy import free_ports

from pipeline.broker.folder import HOST
from pipeline.broker.local import LocalBroker
from pipeline.kafka.clients import admin_client
from pipeline.kafka.settings import KafkaSettings
from pipeline.wait import Deadline

LISTENERS = {
    "TLS": "SSL",
    "MUTUAL": "SSL",
    "MUTUAL12": "SSL",
    "LOGIN": "SASL_SSL",
    "OPEN": "SASL_PLAINTEXT",
    "BRIEF": "SASL_PLAINTEXT",
    "OTHER": "SSL",
    "OLD": "SSL",
}
"""Name of a listener -> its security protocol."""
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
MECHANISMS = {"LOGIN": ("PLAIN", *SCRAM), "OPEN": SCRAM, "BRIEF": ("SCRAM-SHA-512",)}
SECRET = "hunter2"
"""Part of every password, so that a test can look for it."""
REAUTHENTICATE = 3.0
"""Seconds after which BRIEF asks for the login again."""

_MODULES = "org.apache.kafka.common.security"


class SecuredBroker:
    """The running broker, its authority and its users."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "ours")
        self.strangers = Authority(folder, "strangers")
        """An authority that the broker does not trust."""
        self.certificate = self.authority.issue("broker", "localhost", HOST)
        """What it shows on all listeners but OTHER and OLD."""
        servers = {
            "": self.certificate,
            "listener.name.other.": self.authority.issue("other", "kafka.example"),
            "listener.name.old.": self.authority.issue("old", "localhost", HOST, lasts=-DAY),
        }
        self.local = LocalBroker(folder / "broker")
        self.local.folder.path.mkdir()
        ports = self.local.folder.choose_ports(None)
        self._ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
        outside = ",".join(f"{name}://{HOST}:{port}" for name, port in self._ports.items())
        inside = f"PLAINTEXT://{HOST}:{ports.port}"
        protocols = ",".join(f"{name}:{protocol}" for name, protocol in LISTENERS.items())
        self.local.settings = {
            "listeners": f"{inside},CONTROLLER://{HOST}:{ports.controller_port},{outside}",
            "advertised.listeners": f"{inside},{outside}",
            "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,{protocols}",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "false",
            "super.users": "User:ANONYMOUS;User:admin",
            "ssl.keystore.type": "PEM",
            **{f"{prefix}ssl.keystore.location": _keystore(server) for prefix, server in servers.items()},
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.file),
            "ssl.principal.mapping.rules": "RULE:^CN=([^,]*).*$/$1/,DEFAULT",
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.mutual12.ssl.client.auth": "required",
            "listener.name.mutual12.ssl.enabled.protocols": "TLSv1.2",
            **_logins(),
        }

    @property
    def anybody(self) -> KafkaSettings:
        """The super user, on the plain listener."""
        return KafkaSettings(self.local.bootstrap_servers)

    def address(self, listener: str, host: str = HOST) -> str:
        """`host:port` of a listener."""
        return f"{host}:{self._ports[listener]}"

    def settings(self, listener: str, **options: object) -> KafkaSettings:
        """As a client without a name comes to a listener that it trusts; `options` on top, None takes one away."""
        given: dict[str, object] = {"security_protocol": LISTENERS[listener]}
        if LISTENERS[listener].endswith("SSL"):
            given["ssl_cafile"] = str(self.authority.file)
        given |= options
        return KafkaSettings(self.address(listener), {k: v for k, v in given.items() if v is not None})

    def login(self, user: str, listener: str = "LOGIN", **options: object) -> KafkaSettings:
        """As a user who gives the password of `add_user`."""
        given = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_plain_username": user, "sasl_plain_password": password(user)}
        return self.settings(listener, **given | options)

    def with_certificate(self, issued: Issued, listener: str = "MUTUAL", **options: object) -> KafkaSettings:
        """As who shows a certificate."""
        given = {"ssl_certfile": str(issued.certificate), "ssl_keyfile": str(issued.key)}
        return self.settings(listener, **given | options)

    def add_user(self, user: str, secret: str | None = None) -> None:
        """Let a user in by SCRAM, or change the password."""
        known = [UserScramCredentialUpsertion(user, mechanism, secret or password(user)) for mechanism in SCRAM]
        with admin_client(self.anybody) as admin:
            for each in known:
                assert admin.alter_user_scram_credentials([each]) == {user: None}
            _until(lambda: len(admin.describe_user_scram_credentials([user])[user]["credential_infos"]) == len(SCRAM))

    def allow(self, user: str, operation: str, resource: str) -> None:
        """Give a right: `allow("alice", "READ", "topic:sec.*")`; also "group:..." and "cluster"; `*` ends a prefix."""
        right = _right(user, operation, resource)
        with admin_client(self.anybody) as admin:
            assert not admin.create_acls([right])["failed"]
            _until(lambda: bool(admin.describe_acls(_exactly(right))[0]))

    def take_away(self, user: str, operation: str, resource: str) -> None:
        """Undo `allow`; AssertionError: there was no such right."""
        right = _right(user, operation, resource)
        with admin_client(self.anybody) as admin:
            ((_, taken, _),) = admin.delete_acls([_exactly(right)])
            assert taken, f"{user} had no {operation} on {resource}"
            _until(lambda: not admin.describe_acls(_exactly(right))[0])


@contextmanager
def running_secured_broker(folder: Path) -> Iterator[SecuredBroker]:
    """Start one, and end it with the block."""
    broker = SecuredBroker(folder)
    broker.local.start()
    try:
        yield broker
    finally:
        broker.local.kill()


def password(user: str) -> str:
    """What `add_user` gives a user who brings none."""
    return f"{SECRET}-of-{user}"


def _keystore(server: Issued) -> str:
    """Kafka takes key and certificate from one file."""
    both = server.certificate.with_suffix(".both.pem")
    both.write_bytes(server.key.read_bytes() + server.certificate.read_bytes())
    return str(both)


def _logins() -> dict[str, str]:
    found = {}
    for listener, mechanisms in MECHANISMS.items():
        prefix = f"listener.name.{listener.lower()}"
        found[f"{prefix}.sasl.enabled.mechanisms"] = ",".join(mechanisms)
        for mechanism in mechanisms:
            module = f"{_MODULES}.scram.ScramLoginModule required;"
            if mechanism == "PLAIN":
                module = f'{_MODULES}.plain.PlainLoginModule required user_plain="{password("plain")}";'
            found[f"{prefix}.{mechanism.lower()}.sasl.jaas.config"] = module
    found["listener.name.brief.scram-sha-512.connections.max.reauth.ms"] = str(int(REAUTHENTICATE * 1000))
    return found


def _right(user: str, operation: str, resource: str) -> ACL:
    kind, _, name = resource.partition(":")
    prefixed = name.endswith("*") and name != "*"
    pattern = ResourcePattern(
        ResourceType[kind.upper()],
        (name[:-1] if prefixed else name) or "kafka-cluster",
        ACLResourcePatternType.PREFIXED if prefixed else ACLResourcePatternType.LITERAL,
    )
    return ACL(f"User:{user}", "*", ACLOperation[operation], ACLPermissionType.ALLOW, pattern)


def _exactly(right: ACL) -> ACLFilter:
    return ACLFilter(right.principal, right.host, right.operation, right.permission_type, right.resource_pattern)


def _until(predicate: Callable[[], bool], timeout: float = 10.0) -> None:
    """The controller has it at once, the broker a moment later."""
    deadline = Deadline(timeout)
    while not predicate():
        assert not deadline.over, "the broker does not take it over"
