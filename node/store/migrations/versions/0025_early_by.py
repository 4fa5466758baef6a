"""which worker is at a series before it is complete"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("series", sa.Column("early_by", sa.String(length=64)))


def downgrade() -> None:
    op.drop_column("series", "early_by")
