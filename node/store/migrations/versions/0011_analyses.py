"""what statistics need of each analysis, and why a reader disagrees"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INDEXES = (
    ("analyses_by_time", ("analysed_at", "verdict")),
    ("analyses_by_scanner", ("scanner", "analysed_at", "verdict")),
    ("analyses_by_model", ("model_name", "model_version", "analysed_at", "verdict")),
    ("analyses_by_opinion", ("opinion_at",)),
    ("analyses_by_sampling", ("sampled_at",)),
)
CLASSES = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
BATCH = 500


def upgrade() -> None:
    with op.batch_alter_table("reviews", schema=None) as batch_op:
        batch_op.add_column(sa.Column("wrong", sa.String(length=16), nullable=True))
    made = op.create_table(
        "analyses",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=128), nullable=True),
        sa.Column("analysed_at", sa.Float(), nullable=False),
        sa.Column("model_name", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=64), nullable=False),
        sa.Column("model_sha256", sa.String(length=64), nullable=False),
        sa.Column("scanner", sa.String(length=200), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("any_probability", sa.Float(), nullable=False),
        sa.Column("present", sa.Integer(), nullable=False),
        sa.Column("evaluated", sa.Integer(), nullable=False),
        sa.Column("volume_ml", sa.Float(), nullable=True),
        sa.Column("kernel", sa.String(length=64), nullable=False),
        sa.Column("kvp", sa.Float(), nullable=True),
        sa.Column("slice_thickness_mm", sa.Float(), nullable=True),
        sa.Column("pixel_mm", sa.Float(), nullable=True),
        sa.Column("slices", sa.Integer(), nullable=True),
        sa.Column("head_hu", sa.Float(), nullable=True),
        sa.Column("head_share", sa.Float(), nullable=True),
        sa.Column("told", sa.Integer(), nullable=True),
        sa.Column("wrong", sa.Integer(), nullable=True),
        sa.Column("opinion", sa.String(length=16), nullable=True),
        sa.Column("why", sa.String(length=16), nullable=True),
        sa.Column("opinion_by", sa.String(length=64), nullable=True),
        sa.Column("opinion_at", sa.Float(), nullable=True),
        sa.Column("sampled_at", sa.Float(), nullable=True),
        sa.Column("sampled_by", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "model_sha256", name="one_analysis_a_model"),
    )
    for name, columns in INDEXES:
        op.create_index(name, "analyses", list(columns))
    _carry_over(made)


def _carry_over(analyses: sa.Table) -> None:
    """What was analysed before, from its findings; of its scanner nothing was kept."""
    connection = op.get_bind()
    jobs = sa.table("jobs", sa.column("id"), sa.column("study_instance_uid"), sa.column("analysed_at"),
                    sa.column("priority"), sa.column("findings", sa.JSON))
    reviews = sa.table("reviews", sa.column("job_id"), sa.column("opinion"), sa.column("opinion_by"),
                       sa.column("opinion_at"))
    query = (
        sa.select(jobs, reviews.c.opinion, reviews.c.opinion_by, reviews.c.opinion_at)
        .outerjoin(reviews, reviews.c.job_id == jobs.c.id)
        .order_by(jobs.c.id)
        .limit(BATCH)
    )
    after = 0
    while rows := connection.execute(query.where(jobs.c.id > after)).all():
        found = [row for job in rows if (row := _row(job))]
        if found:
            connection.execute(sa.insert(analyses), found)
        after = rows[-1].id


def _row(job: sa.Row) -> dict | None:
    findings = job.findings
    if not findings or not job.analysed_at or not job.priority or "any" not in findings["classes"]:
        return None
    classes, model = findings["classes"], findings["model"]
    evaluated = sum(1 << CLASSES.index(name) for name in classes)
    present = sum(1 << CLASSES.index(name) for name, found in classes.items() if found["present"])
    row = {
        "job_id": job.id,
        "study_instance_uid": job.study_instance_uid,
        "analysed_at": job.analysed_at,
        "model_name": model["name"][:64],
        "model_version": model["version"][:64],
        "model_sha256": model["sha256"],
        "scanner": "unknown scanner",
        "verdict": job.priority,
        "any_probability": classes["any"]["probability"],
        "present": present,
        "evaluated": evaluated,
        "volume_ml": (findings["segmentation"] or {}).get("volume_ml"),
        "kernel": "",
        "told": None,
        "wrong": None,
        "opinion": None,
        "why": None,
        "opinion_by": None,
        "opinion_at": None,
    }
    if not job.opinion or (job.opinion_at or 0) < job.analysed_at:
        return row
    unclear = job.priority == "HIGH"
    agrees = job.opinion == "AGREE"
    return row | {
        "told": 0 if unclear else evaluated if agrees else 1,
        "wrong": 0 if unclear or agrees else 1,
        "opinion": job.opinion,
        "why": None if agrees else "UNSPECIFIED",
        "opinion_by": job.opinion_by,
        "opinion_at": job.opinion_at,
    }


def downgrade() -> None:
    op.drop_table("analyses")
    with op.batch_alter_table("reviews", schema=None) as batch_op:
        batch_op.drop_column("wrong")
