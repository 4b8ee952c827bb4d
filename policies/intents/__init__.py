"""Which of seven kinds of work an untagged prompt asks for, from its words alone, or "cannot tell"."""

from __future__ import annotations
