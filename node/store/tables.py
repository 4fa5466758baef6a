"""The tables, as SQLAlchemy Core sees them. No query lives here.

Times are seconds since the epoch (UTC). States are the names in node.domain.lifecycle.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
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
    event,
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
    Column("files_removed_at", Float),  # by retention; a later arrival empties it again
    Column("order_priority", String(16)),  # node.domain.orders: the most urgent word that was said of it
    Column("order_source", String(16)),
    Column("canary", Integer, nullable=False, server_default="0"),  # 1: the node's own phantom, no patient
    Index("studies_by_arrival", "last_received_at"),
    Index("studies_by_patient", "patient_id"),
    Index("studies_by_accession", "accession_number"),
)
BEGINNINGS = {  # indexes on how they begin, whatever the case of their letters: node.store.beginnings
    "studies_by_patient_beginning": "patient_id",
    "studies_by_accession_beginning": "accession_number",
}
for _index, _column in BEGINNINGS.items():
    for _dialect, _what in (
        ("postgresql", f"lower({_column}) text_pattern_ops"),
        ("sqlite", f"{_column} COLLATE NOCASE"),
    ):
        _made = DDL(f"CREATE INDEX {_index} ON studies ({_what})").execute_if(dialect=_dialect)
        event.listen(studies, "after_create", _made)

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
    Column("kept_header", JSON),  # of one of its instances whose rows went with their files: for priors
    Column("early_by", String(64)),  # the worker that is at it before it is complete: node.store.early
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
    Column("held_by", String(64)),  # the disk that alone has the file; NULL: every machine finds it
    Index("instances_by_series", "series_instance_uid"),
    Index("instances_by_association", "association_id", "received_at"),
    Index("instances_by_arrival", "received_at", "size_bytes"),
)
_is_held = instances.c.held_by.is_not(None)
Index(
    "instances_held",
    instances.c.held_by,
    instances.c.received_at,
    postgresql_where=_is_held,
    sqlite_where=_is_held,
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
    Column("routing", JSON),  # what the rules gave each destination and why; NULL where there were no rules
    Column("rung_stat", Integer),  # in which queue its doorbell rang last: 1 STAT, 0 routine
    Column("canary", Integer, nullable=False, server_default="0"),  # as that of its study
    Column("ordered", String(16), nullable=False, server_default=""),  # as order_priority of its study
    Column("reported_priority", String(16)),  # the most urgent one that a report of it went out with
    UniqueConstraint("series_instance_uid", "revision", name="one_job_a_revision"),
    Index("jobs_by_state", "state", "created_at"),
    Index("jobs_in_line", "state", "attempts", "ordered", "created_at", "id"),
    Index("jobs_by_study", "study_instance_uid", "id"),
    Index("jobs_by_priority", "priority", "id"),
    Index("jobs_by_analysis", "analysed_at"),
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
    Column("lease_owner", String(64)),  # node.liveness.process_name
    Column("asked_s", Float, nullable=False, server_default="0"),  # for so long its commitment was asked for
    UniqueConstraint("sop_instance_uid", "destination", name="one_delivery_a_destination"),
    Index("deliveries_due", "destination", "state", "next_try_at"),
    Index("deliveries_by_job", "job_id"),
    Index("deliveries_by_state", "state", "urgent", "created_at"),
    Index("deliveries_by_sending", "destination", "sent_at"),
)

alerts = Table(  # what a channel is told about a study: node.domain.announcing
    "alerts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("channel", String(64), nullable=False),
    Column("study_instance_uid", UID, ForeignKey("studies.study_instance_uid"), nullable=False),
    Column("job_id", Integer, ForeignKey("jobs.id"), nullable=False),
    Column("number", Integer, nullable=False),  # of the announcements of a study to this channel, from 1
    Column("identifier", String(32), nullable=False, unique=True),  # the same in every resend
    Column("stage", String(16), nullable=False),
    Column("priority", String(16)),  # the most urgent one told so far
    Column("urgent", Integer, nullable=False),  # a positive result: never given up, sent before the others
    Column("content", JSON, nullable=False),  # node.domain.announcing.Announcement
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("last_slice_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("due_since", Float, nullable=False),  # created, or retried by an admin
    Column("next_try_at", Float, nullable=False),
    Column("lease_until", Float),
    Column("lease_owner", String(64)),  # node.liveness.process_name
    Column("sent_at", Float),
    Column("acknowledged_at", Float),
    Column("last_status", String(32)),
    Column("last_error", Text),
    Column("receipt", Text),  # what the receiver said when it took it
    UniqueConstraint("channel", "study_instance_uid", "number", name="one_alert_a_number"),
    Index("alerts_due", "channel", "state", "next_try_at"),
    Index("alerts_by_study", "study_instance_uid", "id"),
    Index("alerts_by_job", "job_id"),
    Index("alerts_by_state", "state", "urgent", "created_at"),
    Index("alerts_by_time", "created_at"),
)

commitments = Table(  # storage commitment requests (PS3.4 Annex J); the answer may come at any time
    "commitments",
    metadata,
    Column("transaction_uid", UID, primary_key=True),
    Column("destination", String(64), nullable=False),
    Column("asked_at", Float, nullable=False),
    Column("answered_at", Float),
)

orders = Table(  # how urgent others say a study is; an order may come before its study, or never meet one
    "orders",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("source", String(16), nullable=False),  # node.domain.orders.Source
    Column("study_instance_uid", UID, nullable=False),
    Column("accession_number", String(64), nullable=False),
    Column("patient_ids", JSON, nullable=False),
    Column("priority", String(16), nullable=False),
    Column("reference", String(128), nullable=False),  # control id of the message, or AE title
    Column("said_at", Float, nullable=False),
    Column("placer_order_number", String(64), nullable=False, server_default=""),  # ORC-2; of HL7 alone
    Index("orders_by_study", "study_instance_uid"),
    Index("orders_by_accession", "accession_number"),
    Index("orders_by_time", "said_at"),
)

workitems = Table(  # Unified Procedure Steps that readers may take (PS3.4 Annex CC)
    "workitems",
    metadata,
    Column("sop_instance_uid", UID, primary_key=True),
    Column("job_id", Integer, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("study_instance_uid", UID, nullable=False),
    Column("state", String(16), nullable=False),  # node.domain.workitems.StepState
    Column("transaction_uid", UID),  # known to its performer alone
    Column("performed", JSON, nullable=False),  # what the performer said by N-SET, as DICOM JSON
    Column("claimed_by", String(64)),  # AE title
    Column("claimed_at", Float),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("offer", Integer, nullable=False, server_default="1"),  # a job is offered again with another UID
    Column("ended", String(16)),  # why the node itself ended it: node.domain.workitems.Ended
    UniqueConstraint("job_id", "offer", name="one_workitem_an_offer"),
    Index("workitems_by_study", "study_instance_uid"),
    Index("workitems_by_state", "state", "created_at"),
    Index("workitems_by_change", "changed_at"),
)

ups_subscriptions = Table(  # who hears of which workitem; GLOBAL, FILTERED: of those to come
    "ups_subscriptions",
    metadata,
    Column("receiving_ae", String(16), primary_key=True),
    Column("sop_instance_uid", UID, primary_key=True),
    Column("subscribed_at", Float, nullable=False),
    Column("deletion_lock", Integer, nullable=False, server_default="0"),  # 1: it is kept after its end
    Column("matching", JSON),  # of FILTERED: the keys, as DICOM JSON
    Index("ups_subscriptions_by_workitem", "sop_instance_uid"),
)

ups_watchers = Table(  # how it went to tell a subscriber
    "ups_watchers",
    metadata,
    Column("receiving_ae", String(16), primary_key=True),
    Column("told_at", Float),
    Column("failing_since", Float),  # NULL: the last event was taken
    Column("last_error", Text),
    Column("given_up", Integer, nullable=False),  # events that nobody took for a day
)

ups_events = Table(  # what subscribers are still to be told, in the order it happened
    "ups_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("receiving_ae", String(16), nullable=False),
    Column("sop_instance_uid", UID, nullable=False),
    Column("event", Integer, nullable=False),  # node.domain.workitems.Event
    Column("content", JSON, nullable=False),  # Event Information as DICOM JSON
    Column("created_at", Float, nullable=False),
    Column("next_try_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Index("ups_events_due", "receiving_ae", "id"),
)

inquiries = Table(  # what the modality worklist was asked, once for each study
    "inquiries",
    metadata,
    Column("study_instance_uid", UID, primary_key=True),  # no reference: the answer may outlive the study
    Column("asked_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("answered", Integer, nullable=False),
    Column("text", Text, nullable=False),  # what was found, or what went wrong
    Index("inquiries_by_time", "asked_at"),
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

leaders = Table(  # who plays a part that only one process may play at a time
    "leaders",
    metadata,
    Column("name", String(80), primary_key=True),  # node.store.leaders
    Column("holder", String(64), nullable=False),  # node.liveness.process_name; empty: nobody
    Column("term", Integer, nullable=False),  # counts its holders
    Column("beat", Integer, nullable=False),  # counts the renewals of the present one
    Column("since", Float, nullable=False),
)

incidents = Table(  # what a person should look into: conflicts between what came and what was there
    "incidents",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("code", String(32), nullable=False),  # node.store.incidents.Incident
    Column("study_instance_uid", UID, nullable=False),
    Column("series_instance_uid", UID, nullable=False),
    Column("sop_instance_uid", UID, nullable=False),  # the latest one concerned
    Column("calling_ae", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("times", Integer, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    UniqueConstraint("code", "series_instance_uid", name="one_incident_a_series"),
    Index("incidents_by_study", "study_instance_uid"),
    Index("incidents_by_time", "last_at"),
)

removals = Table(  # what retention took away; `paths` until every file of it is deleted
    "removals",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_instance_uid", UID, nullable=False),
    Column("cause", String(16), nullable=False),  # age, watermark
    Column("files", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("begun_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("paths", JSON),
    Index("removals_by_study", "study_instance_uid"),
    Index("removals_unfinished", "finished_at"),
)

scans = Table(  # what the scans of the spool found
    "scans",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("process", String(64), nullable=False),
    Column("begun_at", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("counts", JSON, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),  # node.domain.permissions.Role
    Column("password", Text, nullable=False),  # scrypt, as node.admin.passwords writes it
    Column("created_at", Float, nullable=False),
)

web_sessions = Table(
    "web_sessions",
    metadata,
    Column("token_sha256", String(64), primary_key=True),  # the token itself is known to the browser alone
    Column("user_name", String(64), ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("web_sessions_by_user", "user_name"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("user_name", String(64), ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    Column("role", String(16), nullable=False),
    Column("label", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
    Index("api_tokens_by_user", "user_name"),
)

login_failures = Table(
    "login_failures",
    metadata,
    Column("key", String(160), primary_key=True),  # a user or an address
    Column("count", Integer, nullable=False),
    Column("next_at", Float, nullable=False),  # before this no further try is looked at
)

web_keys = Table(  # what session cookies and anti-forgery tokens are signed with
    "web_keys",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(128), nullable=False),
)

audit = Table(  # append-only: triggers refuse UPDATE and DELETE; holds no patient name
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("who", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("action", String(32), nullable=False),
    Column("study_instance_uid", UID),  # no reference: the trail outlives the study
    Column("detail", Text, nullable=False, default=""),
    Index("audit_by_study", "study_instance_uid", "id"),
    Index("audit_by_person", "who", "id"),
)

audit_queue = Table(  # what the audit repository was not told yet; names of patients are added on sending
    "audit_queue",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("action", String(32), nullable=False),
    Column("who", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    Column("study_instance_uid", UID),  # no reference: the message outlives the study
    Column("detail", Text, nullable=False, default=""),
    Column("objects", JSON, nullable=False),  # instances by SOP class
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_try_at", Float, nullable=False),
    Column("lease_until", Float),
    Column("last_error", Text),
    Index("audit_queue_due", "next_try_at"),
)

reviews = Table(  # what people said about the word of a job; a later word makes it count no more
    "reviews",
    metadata,
    Column("job_id", Integer, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("acknowledged_by", String(64), nullable=False),
    Column("acknowledged_at", Float, nullable=False),
    Column("opinion", String(16)),  # AGREE, DISAGREE
    Column("opinion_by", String(64)),
    Column("opinion_at", Float),
    Column("wrong", String(16)),  # node.domain.opinion.Wrong
    Index("reviews_by_time", "acknowledged_at"),
)

analyses = Table(  # what statistics need of each analysis, and nothing of the patient; outlives its job
    "analyses",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, nullable=False),
    Column("study_instance_uid", UID),  # emptied when the study is forgotten
    Column("analysed_at", Float, nullable=False),
    Column("model_name", String(64), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("scanner", String(200), nullable=False),  # node.domain.acquisition
    Column("verdict", String(16), nullable=False),  # node.domain.findings.Priority
    Column("any_probability", Float, nullable=False),
    Column("present", Integer, nullable=False),  # classes as bits: node.domain.opinion
    Column("evaluated", Integer, nullable=False),
    Column("volume_ml", Float),
    Column("kernel", String(64), nullable=False, default=""),
    Column("kvp", Float),
    Column("slice_thickness_mm", Float),
    Column("pixel_mm", Float),
    Column("slices", Integer),
    Column("head_hu", Float),
    Column("head_share", Float),
    Column("told", Integer),  # what a reader said: on which classes (bits)…
    Column("wrong", Integer),  # …and which of them are wrong
    Column("opinion", String(16)),
    Column("why", String(16)),
    Column("opinion_by", String(64)),
    Column("opinion_at", Float),
    Column("sampled_at", Float),  # drawn by chance to be looked at
    Column("sampled_by", String(64)),
    Column("probabilities", JSON),  # by class; NULL for what was analysed before they were kept
    Column("classified_s", Float),  # from the first file read until the classes were known…
    Column("total_s", Float),  # …and until everything was
    UniqueConstraint("job_id", "model_sha256", name="one_analysis_a_model"),
    Index("analyses_by_time", "analysed_at", "verdict"),
    Index("analyses_by_scanner", "scanner", "analysed_at", "verdict"),
    Index("analyses_by_model", "model_name", "model_version", "analysed_at", "verdict"),
)
# Of what readers judged, and of what was drawn and waits for them: few rows, so that pages read no others.
Index(
    "analyses_told",
    *(analyses.c[n] for n in ("analysed_at", "scanner", "model_name", "model_version", "verdict")),
    *(analyses.c[n] for n in ("present", "told", "wrong", "sampled_at")),
    sqlite_where=analyses.c.opinion_at.is_not(None),
    postgresql_where=analyses.c.opinion_at.is_not(None),
)
Index(
    "analyses_by_opinion",
    *(analyses.c[n] for n in ("opinion", "opinion_at")),
    sqlite_where=analyses.c.opinion_at.is_not(None),
    postgresql_where=analyses.c.opinion_at.is_not(None),
)
_DRAWN = analyses.c.sampled_at.is_not(None) & analyses.c.opinion_at.is_(None)
Index("analyses_drawn", analyses.c.sampled_at, analyses.c.id, sqlite_where=_DRAWN, postgresql_where=_DRAWN)

shadows = Table(  # what a model that reads in silence makes of what was analysed; outlives its job
    "shadows",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, nullable=False),
    Column("study_instance_uid", UID),  # these two are emptied when the study is forgotten
    Column("series_instance_uid", UID),
    Column("revision", Integer, nullable=False),
    Column("model_name", String(64), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("pipeline", Text, nullable=False),  # catalogue name, or absolute path of the sidecar
    Column("state", String(16), nullable=False),  # node.domain.lifecycle.ShadowState
    Column("attempts", Integer, nullable=False, default=0),
    Column("reason_code", String(64)),
    Column("reason_text", Text),
    Column("lease_owner", String(64)),  # node.liveness.process_name
    Column("lease_until", Float),
    Column("created_at", Float, nullable=False),
    Column("rung_at", Float),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("verdict", String(16)),  # from here on as in `analyses`
    Column("any_probability", Float),
    Column("present", Integer),
    Column("evaluated", Integer),
    Column("volume_ml", Float),
    Column("probabilities", JSON),
    Column("classified_s", Float),
    Column("total_s", Float),
    UniqueConstraint("job_id", "model_sha256", name="one_shadow_a_model"),
    Index("shadows_by_state", "state", "created_at"),
    Index("shadows_by_model", "model_sha256", "state", "created_at"),
    Index("shadows_by_end", "state", "model_sha256", "finished_at"),
    Index("shadows_by_reason", "state", "reason_code"),
)

pair_days = Table(  # series that two models read, counted by the day of the analysis: node.store.pair_days
    "pair_days",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("day", Integer, nullable=False),  # of 86,400 s since the epoch, by `analyses.analysed_at`
    Column("active_name", String(64), nullable=False),
    Column("active_version", String(64), nullable=False),
    Column("active_sha256", String(64), nullable=False),
    Column("shadow_name", String(64), nullable=False),
    Column("shadow_version", String(64), nullable=False),
    Column("shadow_sha256", String(64), nullable=False),
    Column("scanner", String(200), nullable=False),
    Column("active_present", Integer, nullable=False),
    Column("active_evaluated", Integer, nullable=False),
    Column("shadow_present", Integer, nullable=False),
    Column("shadow_evaluated", Integer, nullable=False),
    Column("told", Integer),
    Column("wrong", Integer),
    Column("sampled", Integer, nullable=False),
    Column("count", Integer, nullable=False),
    Column("last_at", Float),
    Index("pair_days_by_day", "day"),
)

pair_changes = Table(  # days of which something changed since they were counted, or may have
    "pair_changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("day", Integer, nullable=False),
)

pair_summary = Table(  # one row: all days before this one are counted in `pair_days`
    "pair_summary",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("until_day", Integer, nullable=False),
)

promotions = Table(  # which model was made the active one; the newest row counts: node.domain.choice
    "promotions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("who", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("model_name", String(64), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("settings_pipeline", Text, nullable=False),  # what [model] pipeline said then
    Column("before_pipeline", Text, nullable=False),  # what was active until then
    Column("before_name", String(64), nullable=False),
    Column("before_version", String(64), nullable=False),
    Column("before_sha256", String(64), nullable=False),
)

drifts = Table(  # how far each feature of each scanner is from its reference, as last looked at
    "drifts",
    metadata,
    Column("scanner", String(200), primary_key=True),
    Column("feature", String(32), primary_key=True),  # node.quality.drift
    Column("reference", Integer, nullable=False),  # known values
    Column("recent", Integer, nullable=False),
    Column("distance", Float, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("psi", Float, nullable=False),
    Column("before", Text, nullable=False),
    Column("after", Text, nullable=False),
    Column("drifted_since", Float),
    Column("looked_at", Float, nullable=False),
)

canaries = Table(  # phantom studies that the node sent to itself
    "canaries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("slot", BigInteger, unique=True),  # its turn; none for one that somebody asked for
    Column("study_instance_uid", UID, nullable=False, unique=True),
    Column("asked_by", String(64), nullable=False),
    Column("begun_at", Float, nullable=False),
    Column("sent_at", Float),
    Column("finished_at", Float),
    Column("state", String(16), nullable=False),  # node.domain.canary.State
    Column("text", Text, nullable=False),
    Column("model", String(140), nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("outcome", JSON),  # node.domain.canary.Outcome
    Column("steps_s", JSON),
    Index("canaries_by_end", "finished_at"),
)

canary_expectations = Table(  # what each model makes of the phantom
    "canary_expectations",
    metadata,
    Column("model_sha256", String(64), primary_key=True),
    Column("outcome", JSON, nullable=False),
    Column("recorded_at", Float, nullable=False),
    Column("recorded_by", String(64), nullable=False),
)

pauses = Table(  # a row: that part of the node stands still until an admin lets it go on
    "pauses",
    metadata,
    Column("name", String(80), primary_key=True),  # node.store.pauses
    Column("paused_by", String(64), nullable=False),
    Column("paused_at", Float, nullable=False),
)

echoes = Table(  # the last C-ECHO an admin had sent to each destination
    "echoes",
    metadata,
    Column("destination", String(64), primary_key=True),
    Column("at", Float, nullable=False),
    Column("ok", Integer, nullable=False),
    Column("text", Text, nullable=False),
)

comparisons = Table(  # of an archive with what came here: asked for, under way, over
    "comparisons",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("archive", String(64), nullable=False),
    Column("since", String(8), nullable=False),  # StudyDate, YYYYMMDD
    Column("until", String(8), nullable=False),
    Column("asked_by", String(64), nullable=False),
    Column("asked_at", Float, nullable=False),
    Column(
        "slot", String(96), unique=True
    ),  # of one that is due by the clock: only one process may ask for it
    Column("owner", String(64)),  # node.liveness.process_name
    Column("begun_at", Float),
    Column("finished_at", Float),
    Column("studies", Integer),
    Column("missing", Integer),
    Column("error", Text),
    Index("comparisons_by_archive", "archive", "id"),
    Index("comparisons_unfinished", "finished_at", "id"),
)

gaps = Table(  # what an archive holds and what never came here
    "gaps",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("archive", String(64), nullable=False),
    Column("kind", String(16), nullable=False),  # node.domain.reconciliation.Kind
    Column("study_instance_uid", UID, nullable=False),
    Column("series_instance_uid", UID, nullable=False),  # empty: the whole study
    Column("patient_id", String(128), nullable=False),
    Column("accession_number", String(64), nullable=False),
    Column("study_date", String(32), nullable=False),
    Column("description", Text, nullable=False),
    Column("expected", Integer),  # instances; NULL where the archive does not count them
    Column("here", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("first_seen_at", Float, nullable=False),
    Column("last_seen_at", Float, nullable=False),
    Column("asked_by", String(64)),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_try_at", Float),
    Column("fetched_at", Float),
    Column("last_error", Text),
    UniqueConstraint("archive", "study_instance_uid", "series_instance_uid", name="one_gap_an_object"),
    Index("gaps_by_state", "state", "next_try_at"),
    Index("gaps_by_date", "archive", "study_date"),
)

APPEND_ONLY = {
    "sqlite": (
        "CREATE TRIGGER audit_keeps_rows BEFORE DELETE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
        "CREATE TRIGGER audit_keeps_words BEFORE UPDATE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
    ),
    "postgresql": (
        "CREATE OR REPLACE FUNCTION audit_refuses() RETURNS trigger AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER audit_keeps_rows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuses()",
    ),
}
"""What makes the trail append-only; the migration holds the same statements."""

for _dialect, _statements in APPEND_ONLY.items():
    for _statement in _statements:
        event.listen(audit, "after_create", DDL(_statement).execute_if(dialect=_dialect))
