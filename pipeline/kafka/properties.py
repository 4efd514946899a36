"""The properties file that says how to be let into a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from schemas.names import did_you_mean

_ALIASES = {
    "sasl_username": "sasl_plain_username",
    "sasl_password": "sasl_plain_password",
    "sasl_mechanisms": "sasl_mechanism",
    "ssl_ca_location": "ssl_cafile",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_key_location": "ssl_keyfile",
    "ssl_key_password": "ssl_password",
}
"""Names that other Kafka clients give to the same settings."""

_OF_JAVA = {
    "sasl_jaas": "sasl.username and sasl.password",
    "ssl_truststore": "ssl.ca.location, a PEM file",
    "ssl_keystore": "ssl.certificate.location and ssl.key.location, PEM files",
    "ssl_endpoint": "ssl.check.hostname",
}
"""What only Java clients understand, by how its name begins -> what says the same here."""

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")

_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI")

_ALLOWED = {
    "bootstrap_servers",
    "security_protocol",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_name",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_crlfile",
    "ssl_check_hostname",
    "client_dns_lookup",
    "request_timeout_ms",
}


def read_properties(path: Path) -> dict[str, Any]:
    """Read a properties file, or a pipe that a shell fills; a bad line is named, its value never shown."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark in front
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the Kafka properties: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot read the Kafka properties: not UTF-8 text") from None
    options: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(("#", "!")):
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        key = name.replace(".", "_").replace("-", "_").lower()
        key = _ALIASES.get(key, key)
        if not equals:
            raise ConfigError(f"{path}:{number}: expected `name=value`")
        if key not in _ALLOWED:
            raise ConfigError(f"{path}:{number}: unknown Kafka property {name!r}: {_instead(key)}")
        options[key] = _typed(key, value.strip(), f"{path}:{number}: {name}")
    return options


def _instead(key: str) -> str:
    for begin, ours in _OF_JAVA.items():
        if key.startswith(begin):
            return f"it is for Java clients, set {ours}"
    return did_you_mean(key, _ALLOWED | set(_ALIASES))


def _typed(key: str, value: str, where: str) -> Any:
    if key.endswith("_ms"):
        if not value.isdigit():
            raise ConfigError(f"{where} must be a whole number of milliseconds")
        return int(value)
    if key == "security_protocol" and value.upper() not in _PROTOCOLS:
        raise ConfigError(f"{where} must be one of {', '.join(_PROTOCOLS)}")
    if key == "sasl_mechanism" and value.upper() not in _MECHANISMS:
        raise ConfigError(f"{where} must be one of {', '.join(_MECHANISMS)}")
    if key.startswith("ssl_") and key.endswith("file") and not Path(value).is_file():
        # kafka-python would retry until it times out, and say only that nobody answered.
        raise ConfigError(f"{where}: no such file: {value}")
    if key in ("security_protocol", "sasl_mechanism"):
        return value.upper()
    if key == "ssl_check_hostname":
        return value.lower() not in ("false", "no", "0", "")
    return value
