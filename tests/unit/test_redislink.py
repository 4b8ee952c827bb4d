"""Which Redis a URL means."""

from __future__ import annotations

import pytest

from waybill.errors import ConfigError
from waybill.redislink import Sentinels, is_redis, kombu_address, sentinels

URL = "redis+sentinel://waybill:p%40ss@one:26379,two,[::1]:26381/3?master=fleet&sentinel_password=other"


def test_sentinels_are_read_from_a_url() -> None:
    assert sentinels(URL) == Sentinels(
        hosts=(("one", 26379), ("two", 26379), ("::1", 26381)),
        master="fleet",
        login={"username": "waybill", "password": "p@ss"},
        sentinel_password="other",
        db=3,
    )


def test_a_server_by_itself_has_none() -> None:
    assert sentinels("redis://:secret@localhost:6379/0") is None
    assert kombu_address("rediss://localhost/1") == ("rediss://localhost/1", {})


def test_kombu_is_told_the_same() -> None:
    address, options = kombu_address("redis+sentinel://:p%40ss@one:26379,two/3?master=fleet")

    assert address == "sentinel://:p%40ss@one:26379/3;sentinel://:p%40ss@two:26379/3"
    assert options["master_name"] == "fleet"


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one:26379/0",
        "redis+sentinel://one:port/0?master=m",
        "redis+sentinel://one/zero?master=m",
        "redis+sentinel:///0?master=m",
    ],
)
def test_a_wrong_url_says_how_to_write_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis.sentinel://user:password@host:26379,host:26379/0.master=NAME"):
        sentinels(url)


def test_the_broker_is_told_apart() -> None:
    assert [is_redis(url) for url in (URL, "rediss://x", "amqp://x", "sentinel://x")] == [True, True, False, False]
