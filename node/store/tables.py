"""The tables, as SQLAlchemy Core sees them. No query lives here.

Times are seconds since the epoch (UTC). States are the names in node.domain.lifecycle.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()
LONGEST_UID = 128
"""PS3.5 allows 64; real senders sometimes exceed it, and are kept."""
UID = String(LONGEST_UID)

associations = Table(
    "associations",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("listener", String(64), nullable=False),
    Column("calling_ae", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("outcome", String(16)),  # released, aborted
    Index("associations_open", "closed_at"),
)

studies = Table(
    "studies",
    metadata,
    Column("study_instance_uid", UID, primary_key=True),
    Column("patient_id", String(128), nullable=False, default=""),
    Column("patient_name", Text, nullable=False, default=""),
    Column("accession_number", String(64), nullable=False, default=""),
    Column("study_date", String(32), nullable=False, default=""),
    Column("description", Text, nullable=False, default=""),
    Column("first_received_at", Float, nullable=False),
    Column("last_received_at", Float, nullable=False),
    Index("studies_by_arrival", "last_received_at"),
)

series = Table(
    "series",
    metadata,
    Column("series_instance_uid", UID, primary_key=True),
    Column("study_instance_uid", UID, ForeignKey("studies.study_instance_uid"), nullable=False),
    Column("modality", String(32), nullable=False, default=""),
    Column("description", Text, nullable=False, default=""),
    Column("series_number", Integer),
    Column("state", String(16), nullable=False),
    Column("revision", Integer, nullable=False, default=1),
    Column("reason_code", String(64)),
    Column("reason_text", Text),
    Column("notes", JSON),  # remarks that belong into the findings: gaps, contradictions in headers
    Column("instance_count", Integer, nullable=False, default=0),
    Column("first_received_at", Float, nullable=False),
    Column("last_received_at", Float, nullable=False),
    Column("completed_at", Float),
    Column("decided_at", Float),
    Index("series_by_study", "study_instance_uid"),
    Index("series_by_state", "state", "last_received_at"),
)

instances = Table(
    "instances",
    metadata,
    Column("sop_instance_uid", UID, primary_key=True),
    Column("series_instance_uid", UID, ForeignKey("series.series_instance_uid"), nullable=False),
    Column("association_id", String(36), ForeignKey("associations.id"), nullable=False),
    Column("path", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("header", JSON, nullable=False),  # node.domain.instance.Instance
    Column("received_at", Float, nullable=False),
    Index("instances_by_series", "series_instance_uid"),
    Index("instances_by_association", "association_id", "received_at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("series_instance_uid", UID, ForeignKey("series.series_instance_uid"), nullable=False),
    Column("study_instance_uid", UID, ForeignKey("studies.study_instance_uid"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("reason_code", String(64)),
    Column("reason_text", Text),
    Column("lease_owner", String(128)),
    Column("lease_until", Float),
    Column("created_at", Float, nullable=False),
    Column("rung_at", Float),
    Column("started_at", Float),
    Column("analysed_at", Float),
    Column("reported_at", Float),  # the objects (or the not-analysed report) and their deliveries are stored
    Column("priority", String(16)),
    Column("findings", JSON),
    Column("maps_path", Text),
    UniqueConstraint("series_instance_uid", "revision", name="one_job_a_revision"),
    Index("jobs_by_state", "state", "created_at"),
)

objects = Table(
    "objects",
    metadata,
    Column("sop_instance_uid", UID, primary_key=True),
    Column("job_id", Integer, ForeignKey("jobs.id"), nullable=False),
    Column("output", String(16), nullable=False),
    Column("series_instance_uid", UID, nullable=False),
    Column("sop_class_uid", UID, nullable=False),
    Column("path", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("objects_by_job", "job_id"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sop_instance_uid", UID, ForeignKey("objects.sop_instance_uid"), nullable=False),
    Column("job_id", Integer, ForeignKey("jobs.id"), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("rank", Integer, nullable=False),  # order of sending within a job: what alarms first goes first
    Column("urgent", Integer, nullable=False),  # a positive result: never given up, sent before the others
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("created_at", Float, nullable=False),
    Column("next_try_at", Float, nullable=False),
    Column("lease_until", Float),
    Column("sent_at", Float),
    Column("last_status", String(16)),
    Column("last_error", Text),
    Column("committed_at", Float),
    UniqueConstraint("sop_instance_uid", "destination", name="one_delivery_a_destination"),
    Index("deliveries_due", "destination", "state", "next_try_at"),
    Index("deliveries_by_job", "job_id"),
)

commitments = Table(  # storage commitment requests (PS3.4 Annex J); the answer may come at any time
    "commitments",
    metadata,
    Column("transaction_uid", UID, primary_key=True),
    Column("destination", String(64), nullable=False),
    Column("asked_at", Float, nullable=False),
    Column("answered_at", Float),
)

heartbeats = Table(
    "heartbeats",
    metadata,
    Column("process", String(128), primary_key=True),  # role@host:pid
    Column("role", String(32), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("detail", JSON, nullable=False),
)
