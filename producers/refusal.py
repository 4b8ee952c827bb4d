"""The one error of the batch runner: a command that cannot be carried out, told before anything is submitted."""

from __future__ import annotations

from waybill.errors import WaybillError


class Refused(WaybillError):
    """The command is not usable as given. One line: which thing is wrong, and what to write instead."""
