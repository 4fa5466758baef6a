"""patient IDs and accession numbers are found by their beginnings without reading every study"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

INDEXES = {
    "studies_by_patient_beginning": "patient_id",
    "studies_by_accession_beginning": "accession_number",
}


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    for name, column in INDEXES.items():
        what = f"lower({column}) text_pattern_ops" if postgresql else f"{column} COLLATE NOCASE"
        op.execute(f"CREATE INDEX {name} ON studies ({what})")


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, "studies")
