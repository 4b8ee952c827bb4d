"""Run by the tests as a process of its own: two programs under a supervisor until it is told to stop, or killed.

Each child writes its pid, so that the test can look for it when this process is gone.
"""

from __future__ import annotations

import asyncio
import sys

from waybill.supervisor import Program, Supervisor

CHILD = """
import os, signal, sys, time
def stop(*_):
    print("stopping", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("pid", os.getpid(), flush=True)
while True:
    time.sleep(60)
"""


async def main() -> None:
    argv = [sys.executable, "-c", CHILD]
    async with Supervisor([Program("first", argv), Program("second", argv)], out=sys.stdout) as fleet:
        await fleet.until_told()


if __name__ == "__main__":
    asyncio.run(main())
