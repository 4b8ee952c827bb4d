"""The dashboard: one page for the person on call and the one who pays. Served by the gateway; needs no build step."""
