"""What certificates' own files say, and what is made of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka.net.transport import KafkaSSLTransport
from support.certificates import DAY, Authority

from pipeline.kafka.credentials import tls_context, valid_until
from schemas.errors import ConfigError


@pytest.mark.parametrize("days", [-1, 1, 365, 365 * 40])
def test_the_moment_in_which_a_certificate_expires_is_read_from_it(days: int, tmp_path: Path) -> None:
    """Beyond 2049 it is written with four digits of the year."""
    issued = Authority(tmp_path, "ours").issue("alice", "localhost", lasts=days * DAY)
    expected = datetime.now(UTC) + days * DAY
    assert abs(valid_until(issued.certificate) - expected) < timedelta(minutes=5)


def test_what_is_no_certificate_has_no_such_moment(tmp_path: Path) -> None:
    issued = Authority(tmp_path, "ours").issue("alice")
    with pytest.raises(ValueError, match="substring not found"):
        valid_until(issued.key)


@pytest.mark.parametrize("with_authority", [True, False])
@pytest.mark.parametrize("with_certificate", [True, False])
@pytest.mark.parametrize("check_hostname", [True, False])
def test_the_context_of_tls_is_that_of_kafka_python(
    with_authority: bool, with_certificate: bool, check_hostname: bool, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "ours")
    issued = authority.issue("alice")
    options = {
        "ssl_cafile": str(authority.file) if with_authority else None,
        "ssl_certfile": str(issued.certificate) if with_certificate else None,
        "ssl_keyfile": str(issued.key) if with_certificate else None,
        "ssl_check_hostname": check_hostname,
    }
    ours = tls_context(options)
    theirs = KafkaSSLTransport._build_ssl_context({**KafkaSSLTransport.DEFAULT_CONFIG, **options})
    for said in ("protocol", "minimum_version", "maximum_version", "check_hostname", "verify_mode", "verify_flags"):
        assert getattr(ours, said) == getattr(theirs, said), said
    assert ours.options == theirs.options
    assert ours.get_ca_certs() == theirs.get_ca_certs()
    assert ours.get_ciphers() == theirs.get_ciphers()


def test_a_certificate_beside_a_list_of_revoked_ones_is_not_trusted(tmp_path: Path) -> None:
    ours, strangers = Authority(tmp_path, "ours"), Authority(tmp_path, "strangers")
    revoked = ours.revoke()
    options = {"ssl_cafile": str(ours.file), "ssl_crlfile": str(revoked)}
    assert len(tls_context(options).get_ca_certs()) == 1
    revoked.write_bytes(revoked.read_bytes() + strangers.file.read_bytes())
    with pytest.raises(ConfigError, match="is to hold lists of revoked certificates in PEM form, no more"):
        tls_context(options)
