"""`waybill db ...`: the ledger's schema."""

from __future__ import annotations

from pathlib import Path

import click

from waybill.errors import ConfigError
from waybill.settings import Settings

HEAD_FOLDER = Path(__file__).resolve().parent.parent.parent / "migrations"


@click.group()
def db() -> None:
    """Look after the ledger's schema."""


@db.command()
@click.option("--revision", default="head", show_default=True)
def upgrade(revision: str) -> None:
    """Bring the ledger's schema up to date. Safe to run from several places at once."""
    run_upgrade(Settings.from_env().require_database_url(), revision)
    click.echo("the ledger is up to date")


@db.command()
def current() -> None:
    """Say which revision the ledger has and which one this code wants."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine

    config = alembic_config(Settings.from_env().require_database_url())
    with create_engine(config.attributes["database_url"]).connect() as connection:
        have = MigrationContext.configure(connection).get_current_revision()
    click.echo(f"ledger: {have or 'empty'}, code: {ScriptDirectory.from_config(config).get_current_head()}")


def alembic_config(database_url: str):  # type: ignore[no-untyped-def]  # alembic is only there in a checkout
    """Alembic's configuration for a ledger."""
    if not HEAD_FOLDER.is_dir():
        raise ConfigError("the migrations are not in the installed library; run this from a checkout or the image")
    from alembic.config import Config

    from waybill.ledger.engine import parse_url

    config = Config()
    config.set_main_option("script_location", str(HEAD_FOLDER).replace("%", "%%"))
    config.attributes["database_url"] = parse_url(database_url).difference_update_query(["pgbouncer"])
    return config


def run_upgrade(database_url: str, revision: str = "head") -> None:
    """Upgrade a ledger.

    Raises:
        ConfigError: Postgres does not answer, or refuses us.
    """
    from alembic import command
    from sqlalchemy.exc import OperationalError

    config = alembic_config(database_url)
    try:
        command.upgrade(config, revision)
    except OperationalError as exc:
        line = str(exc.orig).strip().splitlines()[0]
        raise ConfigError(f"WAYBILL_DATABASE_URL: Postgres does not take the connection: {line}") from None
