"""The ledger: Postgres is the truth about every job, attempt, decision and cent."""
