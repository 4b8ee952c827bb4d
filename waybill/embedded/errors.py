"""The one error of this package."""

from __future__ import annotations

from waybill.errors import ConfigError


class EmbeddedError(ConfigError):
    """An embedded server cannot run here; the message is one line that names the thing and the remedy."""
