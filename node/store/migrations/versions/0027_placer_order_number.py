"""which of several orders of one accession number a word is about"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.Column("placer_order_number", sa.String(length=64), nullable=False, server_default="")
    op.add_column("orders", number)


def downgrade() -> None:
    op.drop_column("orders", "placer_order_number")
