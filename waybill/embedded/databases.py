"""More than one database on one server: a test or a benchmark gets its own, cheaply from a template."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from psycopg import sql

#: Present on every Postgres and nobody's template, so nothing blocks while we are connected to it.
MAINTENANCE_DATABASE = "postgres"


def create_database(url: str, name: str, *, template: str | None = None) -> str:
    """Make the database `name` on the server of `url` and return the URL of it.

    Args:
        url: Any database of the server, in SQLAlchemy's form (`postgresql+psycopg://...`) or libpq's.
        name: What to call it; an existing one of that name is an error.
        template: Copy this database, which nobody may be connected to meanwhile (a migrated, empty one: about 50 ms
            instead of running the migrations again). None = an empty database.

    Raises:
        psycopg.Error: The server refused; the message names the reason.
    """
    from psycopg import sql

    source = sql.SQL("") if template is None else sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
    _execute(url, sql.SQL("CREATE DATABASE {}{}").format(sql.Identifier(name), source))
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(name)}"))


def drop_database(url: str) -> None:
    """Remove the database that `url` names, and throw out who is still connected; one that is gone already is fine."""
    from psycopg import sql

    name = unquote(urlsplit(url).path.removeprefix("/"))
    _execute(url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _execute(url: str, statement: sql.SQL | sql.Composed) -> None:
    """Outside a transaction: creating and dropping a database do not work in one."""
    import psycopg

    parts = urlsplit(url)
    maintenance = urlunsplit(parts._replace(scheme="postgresql", path=f"/{MAINTENANCE_DATABASE}"))
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(statement)
