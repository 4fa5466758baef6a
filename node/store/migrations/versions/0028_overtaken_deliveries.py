"""results that wait although a newer one of their series is there for the same destination are not sent"""

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

NEWER = (
    "EXISTS (SELECT 1 FROM jobs AS mine, deliveries AS other JOIN jobs AS newer ON newer.id = other.job_id "
    "WHERE mine.id = deliveries.job_id AND newer.series_instance_uid = mine.series_instance_uid "
    "AND newer.revision > mine.revision AND other.destination = deliveries.destination "
    "AND other.rank < 1000000)"
)
"""From that rank on it is source images."""


def upgrade() -> None:
    op.execute(
        "UPDATE deliveries SET state = 'SUPERSEDED', lease_until = NULL "
        f"WHERE state IN ('PENDING', 'FAILED') AND rank < 1000000 AND {NEWER}"
    )


def downgrade() -> None:
    op.execute("UPDATE deliveries SET state = 'FAILED' WHERE state = 'SUPERSEDED'")
