"""workitems that are offered again, filters and deletion locks of subscribers, and how telling them goes"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

NAMED = {"uq": "%(table_name)s_%(column_0_name)s_key"}
"""As PostgreSQL calls the constraint of 0014; SQLite gave it no name."""


def upgrade() -> None:
    with op.batch_alter_table("workitems", naming_convention=NAMED) as workitems:
        workitems.drop_constraint("workitems_job_id_key", type_="unique")
        workitems.add_column(sa.Column("offer", sa.Integer(), nullable=False, server_default="1"))
        workitems.add_column(sa.Column("ended", sa.String(length=16), nullable=True))
        workitems.create_unique_constraint("one_workitem_an_offer", ["job_id", "offer"])
    lock = sa.Column("deletion_lock", sa.Integer(), nullable=False, server_default="0")
    op.add_column("ups_subscriptions", lock)
    op.add_column("ups_subscriptions", sa.Column("matching", sa.JSON(), nullable=True))
    op.create_table(
        "ups_watchers",
        sa.Column("receiving_ae", sa.String(length=16), nullable=False),
        sa.Column("told_at", sa.Float(), nullable=True),
        sa.Column("failing_since", sa.Float(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("given_up", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("receiving_ae"),
    )


def downgrade() -> None:
    op.drop_table("ups_watchers")
    op.drop_column("ups_subscriptions", "matching")
    op.drop_column("ups_subscriptions", "deletion_lock")
    op.execute("DELETE FROM workitems WHERE offer > 1")
    with op.batch_alter_table("workitems") as workitems:
        workitems.drop_constraint("one_workitem_an_offer", type_="unique")
        workitems.drop_column("ended")
        workitems.drop_column("offer")
        workitems.create_unique_constraint("workitems_job_id_key", ["job_id"])
