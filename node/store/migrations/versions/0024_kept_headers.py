"""one header of an analysed series stays when its files go, so that a later study finds its prior"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("series", sa.Column("kept_header", sa.JSON()))


def downgrade() -> None:
    op.drop_column("series", "kept_header")
