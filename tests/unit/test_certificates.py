"""The certificates that the node shows: what is wrong with them is said with the file and the next step."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from node.certificates import days_left, server_tls
from node.domain.errors import SettingsError
from node.settings.base import Tls
from tests.certificates import Certificate, ended_certificate, make_certificate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "own")


def tls(made: Certificate, **changes: str) -> Tls:
    return Tls(**{"cert": made.cert, "key": made.key, **changes})


def test_a_good_one_is_used_and_its_end_is_known(made: Certificate) -> None:
    assert server_tls(tls(made), "scp.tls") is not None
    assert server_tls(Tls(), "scp.tls") is None
    assert 1.9 < days_left(tls(made), "scp.tls", time.time()) < 2.1


@pytest.mark.parametrize("name", ["cert", "key", "ca"])
def test_a_file_that_is_not_there_is_named(name: str, made: Certificate) -> None:
    with pytest.raises(SettingsError, match=rf"tls\.{name} = /no/such\.pem cannot be read: No such"):
        server_tls(tls(made, **{name: "/no/such.pem"}), "scp.tls")


def test_a_key_of_another_certificate_is_told(made: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other")
    with pytest.raises(SettingsError, match="the key that belongs to the certificate"):
        server_tls(tls(made, key=other.key), "scp.tls")


def test_one_that_ended_is_told(made: Certificate, tmp_path: Path) -> None:
    old = ended_certificate(tmp_path, "old")
    assert server_tls(tls(old), "scp.tls") is not None, "the node starts; those who connect refuse it"
    with pytest.raises(SettingsError, match=r"tls\.cert = .*old\.pem: certificate has expired; renew"):
        days_left(tls(old), "scp.tls", time.time())
