"""whose turn it is, found without looking at all that waits"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

ORDERED = (
    "UPDATE jobs SET ordered = (SELECT order_priority FROM studies "
    "WHERE studies.study_instance_uid = jobs.study_instance_uid) WHERE study_instance_uid IN "
    "(SELECT study_instance_uid FROM studies WHERE order_priority IS NOT NULL)"
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("ordered", sa.String(length=16), nullable=False, server_default=""))
    op.execute(ORDERED)
    op.create_index("jobs_in_line", "jobs", ["state", "attempts", "ordered", "created_at", "id"])


def downgrade() -> None:
    op.drop_index("jobs_in_line", "jobs")
    op.drop_column("jobs", "ordered")
