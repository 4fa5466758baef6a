"""workitems that readers may take: the UPS Pull service"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "workitems",
        sa.Column("sop_instance_uid", sa.String(length=128), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("transaction_uid", sa.String(length=128), nullable=True),
        sa.Column("performed", sa.JSON(), nullable=False),
        sa.Column("claimed_by", sa.String(length=64), nullable=True),
        sa.Column("claimed_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sop_instance_uid"),
        sa.UniqueConstraint("job_id"),
    )
    op.create_index("workitems_by_study", "workitems", ["study_instance_uid"])
    op.create_index("workitems_by_state", "workitems", ["state", "created_at"])
    op.create_index("workitems_by_change", "workitems", ["changed_at"])


def downgrade() -> None:
    op.drop_table("workitems")
