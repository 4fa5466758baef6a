"""phantom studies that the node sends to itself, and what each model makes of them"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("studies", "jobs"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("canary", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "canaries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=True),
        sa.Column("study_instance_uid", sa.String(length=128), nullable=False),
        sa.Column("asked_by", sa.String(length=64), nullable=False),
        sa.Column("begun_at", sa.Float(), nullable=False),
        sa.Column("sent_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("model", sa.String(length=140), nullable=False),
        sa.Column("model_sha256", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=True),
        sa.Column("steps_s", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("slot"),
        sa.UniqueConstraint("study_instance_uid"),
    )
    op.create_index("canaries_by_end", "canaries", ["finished_at"])
    op.create_table(
        "canary_expectations",
        sa.Column("model_sha256", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=False),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.Column("recorded_by", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("model_sha256"),
    )


def downgrade() -> None:
    op.drop_table("canary_expectations")
    op.drop_table("canaries")
    for table in ("studies", "jobs"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("canary")
