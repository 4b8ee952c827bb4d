"""The batch lane: jobs routed to the service `batch` are gathered, sent as provider batches, followed and settled.

lane.py holds the loop and gathers, sending.py gets a batch to its provider once, following.py brings its results home,
rows.py turns a row into an attempt and settles it. docs/batches.md tells the whole.
"""
