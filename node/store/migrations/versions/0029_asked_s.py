"""for how long the commitment of what was sent was asked for, by the waits between and not by the date"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("asked_s", sa.Float(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE deliveries SET asked_s = next_try_at - sent_at "
        "WHERE state = 'SENT' AND sent_at IS NOT NULL AND next_try_at > sent_at"
    )


def downgrade() -> None:
    op.drop_column("deliveries", "asked_s")
