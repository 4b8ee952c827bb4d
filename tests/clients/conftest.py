"""The same fleet with a gateway as in tests/gateway, started anew for this folder."""

from tests.gateway.conftest import gateway, gateway_fleet, gateway_urls, provider

__all__ = ["gateway", "gateway_fleet", "gateway_urls", "provider"]
