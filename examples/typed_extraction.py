"""Extract typed fields from many documents with asyncio, and add up what it cost."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from pydantic import BaseModel, ConfigDict

from waybill import AsyncClient, Priority


class Receipt(BaseModel):
    """What we want to know."""

    model_config = ConfigDict(extra="forbid")

    shop: str
    total: str


DOCUMENTS = [f"Corner Shop No. {n}\n1 bread 2.10\nTOTAL 2.10" for n in range(20)]


async def main() -> None:
    """Submit all, take the answers as they come."""
    async with AsyncClient.from_env() as client:
        jobs = [
            client.make_job(
                intent="extraction",
                prompt=f"Give shop and total.\n\n{text}",
                json_schema=Receipt.model_json_schema(),
                priority=Priority.BATCH,
            )
            for text in DOCUMENTS
        ]
        spent = Decimal(0)
        async for outcome in client.results(await client.submit_many(jobs), timeout_s=120):
            if outcome.result is None:
                print(outcome.error)
                continue
            receipt = Receipt.model_validate(outcome.result.data)
            spent += outcome.usd
            print(receipt)
        print(f"{len(jobs)} documents for ${spent}")


asyncio.run(main())
