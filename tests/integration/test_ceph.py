"""A bucket of Ceph's RADOS gateway: what a server in earnest looks at, and moto does not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from node.depot import bucket
from node.domain.errors import OutOfReach
from tests.ceph import Ceph
from tests.certificates import make_certificate
from tests.integration.test_depot import PATH, assert_sufficient, documented_policy, machine
from tests.s3 import KEYS, NAME


@pytest.fixture(autouse=True)
def emptied(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    ceph.empty()


def test_what_was_damaged_on_the_way_is_refused(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = machine(ceph, tmp_path)
    true = bucket._digests
    monkeypatch.setattr(bucket, "_digests", lambda file: ("kAFQmDzST7DWlj99KOF/cg==", true(file)[1]))
    spool.write(PATH, (b"abc",))
    with pytest.raises(OutOfReach, match="400 BadDigest"):
        spool.write(PATH, (b"abd",))


def test_a_clock_that_is_far_off_is_named(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda **_: late.replace(tzinfo=None))
    with pytest.raises(OutOfReach, match=r"403 RequestTimeTooSkewed.*set the clock"):
        machine(ceph, tmp_path).write(PATH, (b"abc",))


def test_a_key_or_a_secret_that_is_wrong_is_told_apart(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(OutOfReach, match=r"403 SignatureDoesNotMatch.*spool\.s3\.secret_key"):
        machine(ceph, tmp_path).write(PATH, (b"abc",))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    with pytest.raises(OutOfReach, match=r"403 InvalidAccessKeyId.*spool\.s3\.access_key"):
        machine(ceph, tmp_path).write(PATH, (b"abc",))


def test_the_documented_permissions_suffice_and_reach_no_further(
    ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a policy of the bucket, which names whom it is for."""
    policy = json.loads(documented_policy().replace(":::ichnode", f":::{NAME}"))
    for statement in policy["Statement"]:
        statement["Principal"] = {"AWS": ["arn:aws:iam:::user/node"]}
    ceph.add_user("node", "AKIANODE", "of the node")
    ceph.client.put_bucket_policy(Bucket=NAME, Policy=json.dumps(policy))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANODE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the node")
    try:
        assert_sufficient(machine(ceph, tmp_path / "a"))
        with pytest.raises(OutOfReach, match=r"403 AccessDenied to a PUT.*permissions in docs"):
            machine(ceph, tmp_path / "b", prefix="elsewhere/").write(PATH, (b"abc",))
    finally:
        ceph.client.delete_bucket_policy(Bucket=NAME)


def test_over_tls_it_is_trusted_by_its_own_authority_and_by_no_other(ceph: Ceph, tmp_path: Path) -> None:
    endpoint, own = ceph.secure_endpoint, ceph.certificate
    machine(ceph, tmp_path / "a", endpoint=endpoint, ca=own.cert).write(PATH, (b"abc",))
    assert ceph.stored() == [f"ichnode/{PATH}"]
    other = make_certificate(tmp_path, "other")
    for ca in (other.cert, ""):
        with pytest.raises(OutOfReach, match=r"SSLError.*spool\.s3\.ca"):
            machine(ceph, tmp_path / "b", endpoint=endpoint, ca=ca).fetch([PATH])
