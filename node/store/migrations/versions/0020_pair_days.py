"""figures of the pages Quality and Shadow by indexes and by a daily summary"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

TOLD = sa.text("opinion_at IS NOT NULL")
DRAWN = sa.text("sampled_at IS NOT NULL AND opinion_at IS NULL")
TEXTS: dict[str, int] = {}
for _who in ("active", "shadow"):
    TEXTS |= {f"{_who}_name": 64, f"{_who}_version": 64, f"{_who}_sha256": 64}
TEXTS["scanner"] = 200


def upgrade() -> None:
    op.drop_index("analyses_by_opinion", "analyses")
    op.drop_index("analyses_by_sampling", "analyses")
    by_opinion = ["opinion", "opinion_at"]
    op.create_index(
        "analyses_by_opinion", "analyses", by_opinion, sqlite_where=TOLD, postgresql_where=TOLD
    )
    told = ["analysed_at", "scanner", "model_name", "model_version", "verdict", "present", "told", "wrong"]
    op.create_index(
        "analyses_told", "analyses", [*told, "sampled_at"], sqlite_where=TOLD, postgresql_where=TOLD
    )
    op.create_index(
        "analyses_drawn", "analyses", ["sampled_at", "id"], sqlite_where=DRAWN, postgresql_where=DRAWN
    )
    op.create_index("shadows_by_end", "shadows", ["state", "model_sha256", "finished_at"])
    op.create_index("shadows_by_reason", "shadows", ["state", "reason_code"])
    op.create_table(
        "pair_days",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.String(length=length), nullable=False) for name, length in TEXTS.items()),
        sa.Column("active_present", sa.Integer(), nullable=False),
        sa.Column("active_evaluated", sa.Integer(), nullable=False),
        sa.Column("shadow_present", sa.Integer(), nullable=False),
        sa.Column("shadow_evaluated", sa.Integer(), nullable=False),
        sa.Column("told", sa.Integer(), nullable=True),
        sa.Column("wrong", sa.Integer(), nullable=True),
        sa.Column("sampled", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("pair_days_by_day", "pair_days", ["day"])
    op.create_table(
        "pair_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "pair_summary",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("until_day", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def downgrade() -> None:
    op.drop_table("pair_summary")
    op.drop_table("pair_changes")
    op.drop_table("pair_days")
    op.drop_index("shadows_by_reason", "shadows")
    op.drop_index("shadows_by_end", "shadows")
    op.drop_index("analyses_drawn", "analyses")
    op.drop_index("analyses_told", "analyses")
    op.drop_index("analyses_by_opinion", "analyses")
    op.create_index("analyses_by_opinion", "analyses", ["opinion_at"])
    op.create_index("analyses_by_sampling", "analyses", ["sampled_at"])
