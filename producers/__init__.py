"""Waybill's own programs that enqueue jobs. The client library for other services is `waybill.Client`."""
