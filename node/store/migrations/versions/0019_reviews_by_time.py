"""what was acknowledged is listed, the latest first, without reading all of it"""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("reviews_by_time", "reviews", ["acknowledged_at"])


def downgrade() -> None:
    op.drop_index("reviews_by_time", "reviews")
