"""A real Postgres and a real Valkey on loopback, for `./run demo`, `waybill up` and the tests.

Only the server binaries of the `embedded` extra are used (or those of the machine, see `binaries.py`); the Python
layers of those packages are never imported. Nothing here is for production: there `WAYBILL_DATABASE_URL` and
`WAYBILL_REDIS_URL` name the services, and the caller asks for none.

    from waybill import embedded

    with embedded.services(Path(".waybill")) as local:
        engine = create_engine(local.database_url)

Who is who: the *owner* is the process inside the `with` block. It starts one *keeper* (`keeper.py`), which is the
parent of both servers, holds the lock on the state folder, brings a crashed server back and stops both when the owner
leaves, however it leaves: also by SIGKILL. A second process that asks for the same folder *joins* while the owner
lives.
"""

from waybill.embedded.databases import create_database, drop_database
from waybill.embedded.errors import EmbeddedError
from waybill.embedded.owner import Services, services

__all__ = ["EmbeddedError", "Services", "create_database", "drop_database", "services"]
