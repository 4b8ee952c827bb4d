"""Choosing a model from recorded outcomes: fit a policy on some items, measure it on others, compare it with the plain ways."""

from __future__ import annotations
