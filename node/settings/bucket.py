"""The bucket that takes the place of a shared volume. Holds no secret, only where each one stands."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from node.settings.base import SecretPlace, Section, is_private

LARGEST_PUT_MB = 5000
"""S3 takes 5 GiB in one PUT; more would need several parts, of which a crash leaves some behind."""


class Bucket(Section):
    """An S3 bucket (AWS, MinIO, Ceph RGW) that every machine reads and writes; empty: none."""

    bucket: str = ""
    prefix: str = "ichnode/"
    """Before every key, so that a bucket can be shared; one node, one prefix."""
    endpoint: str = ""
    """Empty: AWS in `region`; else as https://minio.example.org:9000."""
    region: str = ""
    access_key: SecretPlace = ""
    secret_key: SecretPlace = ""
    """Both empty: as AWS' own programs find them (environment, ~/.aws, role of the machine or the pod)."""
    ca: str = ""
    """PEM file of the authority that signed the endpoint's certificate; empty: those that Python trusts."""
    plain_http: bool = False
    """Patient data and the signature of each request would travel in the open: only for a sealed network."""
    transfers: int = Field(8, ge=1, le=64)
    """At a time, of each process."""
    timeout_s: float = Field(20, gt=0, le=600)
    """Silence after which a transfer is tried again; a connection gets a quarter of it."""
    cache_mb: int = Field(4096, ge=0)
    """How much of what lies in the bucket each machine keeps a copy of, in data_dir."""

    @property
    def wanted(self) -> bool:
        return bool(self.bucket)

    @field_validator("bucket")
    @classmethod
    def _is_a_name(cls, bucket: str) -> str:
        if bucket and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise ValueError(f"{bucket!r} is no name of a bucket: 3 to 63 of a-z, 0-9, dot and hyphen")
        return bucket

    @field_validator("prefix")
    @classmethod
    def _is_a_folder(cls, prefix: str) -> str:
        if not re.fullmatch(r"([A-Za-z0-9_-][A-Za-z0-9_.-]*/)*", prefix):
            raise ValueError(f"{prefix!r} is no prefix: write letters and digits that end with /, or nothing")
        return prefix

    @field_validator("endpoint")
    @classmethod
    def _is_a_url(cls, endpoint: str) -> str:
        if endpoint and not re.fullmatch(r"https?://[^/?#@\s]+/?", endpoint):
            raise ValueError(f"{endpoint!r} is no endpoint: write https://host:port")
        return endpoint.rstrip("/")

    @model_validator(mode="after")
    def _whole(self) -> Bucket:
        if not self.bucket:
            if given := self.model_fields_set - {"bucket"}:
                raise ValueError(
                    f"{', '.join(sorted(given))} without a bucket: name it, or leave the section out"
                )
            return self
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("access_key and secret_key go together")
        if self.endpoint and not is_private(self.endpoint) and not self.plain_http:
            raise ValueError(
                "patient data would travel in the open: use an endpoint with https, or plain_http = true"
            )
        return self
