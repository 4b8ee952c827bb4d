"""The routing policy that the fleet follows, for checking a command before anything is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import policies
from policies.policyfile import Policy, parse
from waybill.errors import ConfigError
from waybill.settings import Settings

SHIPPED: Final = Path(policies.__file__).with_name("default.toml")


def load_policy(settings: Settings) -> Policy:
    """The policy file that the settings name, or the one that ships.

    Raises:
        ConfigError: It cannot be read, or is wrong.
    """
    path = settings.policy_file or SHIPPED
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"WAYBILL_POLICY_FILE {path}: cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"WAYBILL_POLICY_FILE {path}: is not UTF-8 text") from None
    return parse(text, path.name)
