"""who subscribed to workitems, and what they are still to be told"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ups_subscriptions",
        sa.Column("receiving_ae", sa.String(length=16), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=128), nullable=False),
        sa.Column("subscribed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("receiving_ae", "sop_instance_uid"),
    )
    op.create_index("ups_subscriptions_by_workitem", "ups_subscriptions", ["sop_instance_uid"])
    op.create_table(
        "ups_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("receiving_ae", sa.String(length=16), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=128), nullable=False),
        sa.Column("event", sa.Integer(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("next_try_at", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ups_events_due", "ups_events", ["receiving_ae", "id"])


def downgrade() -> None:
    op.drop_table("ups_events")
    op.drop_table("ups_subscriptions")
