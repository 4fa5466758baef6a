"""which disk alone has a received file, until it is in the bucket"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("instances", sa.Column("held_by", sa.String(length=64), nullable=True))
    held = sa.text("held_by IS NOT NULL")
    op.create_index(
        "instances_held", "instances", ["held_by", "received_at"], postgresql_where=held, sqlite_where=held
    )


def downgrade() -> None:
    op.drop_index("instances_held", "instances")
    op.drop_column("instances", "held_by")
