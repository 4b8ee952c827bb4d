"""What most people write first, to be measured beside the fleet: one prefork Celery task, one SDK call, one INSERT."""

from __future__ import annotations

import os

import anthropic
import psycopg
from celery import Celery

app = Celery("naive", broker=os.environ["NAIVE_REDIS_URL"])
app.conf.update(task_ignore_result=True)

_client: anthropic.Anthropic | None = None
_connection: psycopg.Connection | None = None


@app.task(name="naive.extract")
def extract(number: int, prompt: str) -> None:
    """Call the model and store a row."""
    global _client, _connection
    if _client is None or _connection is None:
        _client = anthropic.Anthropic()
        _connection = psycopg.connect(os.environ["NAIVE_DATABASE_URL"], autocommit=True)
    answer = _client.messages.create(
        model="claude-haiku-5-5", max_tokens=256, messages=[{"role": "user", "content": prompt}]
    )
    # A thinking model answers with a thinking block first; the text is the last one.
    _connection.execute(
        "insert into naive_results (number, answer, input_tokens, output_tokens) values (%s, %s, %s, %s)",
        (number, answer.content[-1].text, answer.usage.input_tokens, answer.usage.output_tokens),
    )
