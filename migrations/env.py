"""Alembic's entry: runs the migrations on the ledger that WAYBILL_DATABASE_URL names."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, pool

from waybill.ledger.tables import Base
from waybill.settings import Settings

config = context.config
url = config.attributes.get("database_url") or Settings.from_env().require_database_url()
engine = create_engine(url, poolclass=pool.NullPool)

with engine.connect() as connection:
    # Two upgrades at once (several pods starting) queue up behind each other instead of colliding.
    connection.exec_driver_sql("select pg_advisory_lock(727278)")
    connection.commit()
    context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.exec_driver_sql("select pg_advisory_unlock(727278)")
    connection.commit()
