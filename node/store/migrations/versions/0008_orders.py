"""how urgent a study was ordered: words of others, what the worklist was asked, and in which queue a job was rung"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=128), nullable=False),
        sa.Column("accession_number", sa.String(length=64), nullable=False),
        sa.Column("patient_ids", sa.JSON(), nullable=False),
        sa.Column("priority", sa.String(length=16), nullable=False),
        sa.Column("reference", sa.String(length=128), nullable=False),
        sa.Column("said_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("orders_by_study", "orders", ["study_instance_uid"])
    op.create_index("orders_by_accession", "orders", ["accession_number"])
    op.create_index("orders_by_time", "orders", ["said_at"])
    op.create_table(
        "inquiries",
        sa.Column("study_instance_uid", sa.String(length=128), nullable=False),
        sa.Column("asked_at", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("answered", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("study_instance_uid"),
    )
    op.create_index("inquiries_by_time", "inquiries", ["asked_at"])
    with op.batch_alter_table("studies", schema=None) as batch_op:
        batch_op.add_column(sa.Column("order_priority", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("order_source", sa.String(length=16), nullable=True))
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rung_stat", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("rung_stat")
    with op.batch_alter_table("studies", schema=None) as batch_op:
        batch_op.drop_column("order_source")
        batch_op.drop_column("order_priority")
    op.drop_table("inquiries")
    op.drop_table("orders")
