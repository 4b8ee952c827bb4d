"""The typed tables are the migrations' schema: what one has and the other lacks is named here."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from waybill.ledger.tables import Base


def test_the_typed_tables_are_what_the_migrations_make(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True},
        )
        differences = compare_metadata(context, Base.metadata)
    engine.dispose()

    # The one index over an expression comes back from Postgres in other words.
    assert [found for found in differences if "jobs_turns" not in str(found)] == []
