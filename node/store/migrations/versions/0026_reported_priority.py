"""the most urgent priority that was reported of a job, whatever a later analysis of it says"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("reported_priority", sa.String(length=16)))
    op.execute(
        "UPDATE jobs SET reported_priority = priority WHERE priority IS NOT NULL AND "
        "(reported_at IS NOT NULL OR EXISTS (SELECT 1 FROM objects WHERE objects.job_id = jobs.id))"
    )


def downgrade() -> None:
    op.drop_column("jobs", "reported_priority")
