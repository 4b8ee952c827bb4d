"""Run by the tests as a process of its own: owns embedded services, says where they are, waits to be told or killed.

python own_services.py STATE_DIR [--fork] [--no-redis]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from waybill import embedded


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--fork", action="store_true", help="leave a forked child that inherits every descriptor")
    parser.add_argument("--no-redis", action="store_true")
    options = parser.parse_args()
    with embedded.services(options.state_dir, redis=not options.no_redis) as services:
        child = 0
        if options.fork:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
        told = {
            "database_url": services.database_url,
            "redis_url": services.redis_url,
            "owned": services.owned,
            "pids": services.pids(),
            "child": child,
        }
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        sys.stdin.readline()


if __name__ == "__main__":
    main()
