"""Whose jobs go next: turns by weight between tenants, and in turn between the lines of one tenant.

Start-time fair queueing: each seat moves its tenant's own clock on by 1/weight, and the tenant whose clock is furthest behind
goes next. A tenant that comes back begins where the others are: being away earns nothing and costs nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Line = tuple[str, str]
"""(tenant, what its jobs have in common): jobs of one line go in the order of their submission."""


@dataclass(slots=True)
class Turns:
    """What was given to whom. One for each class of work; belongs to one dispatcher."""

    tenants: dict[str, float] = field(default_factory=dict)
    lines: dict[Line, float] = field(default_factory=dict)

    def share_out(self, waiting: Sequence[Line], weights: Mapping[str, int], seats: int) -> list[Line]:
        """Who gets the next `seats` seats, in order; a line may get several.

        Args:
            waiting: Lines with work; how much is not known.
            weights: By tenant, at least 1; 1 where there is none.
            seats: How many; 0 or less gives nobody any.
        """
        by_tenant: dict[str, list[tuple[float, Line]]] = {}
        self._welcome(waiting)
        for line in waiting:
            by_tenant.setdefault(line[0], []).append((self.lines[line], line))
        for own in by_tenant.values():
            heapq.heapify(own)
        heads = [(self.tenants[tenant], tenant) for tenant in by_tenant]
        heapq.heapify(heads)
        given: list[Line] = []
        while heads and len(given) < seats:
            at, tenant = heads[0]
            line_at, line = by_tenant[tenant][0]
            given.append(line)
            self.lines[line] = line_at + 1
            self.tenants[tenant] = at + 1 / weights.get(tenant, 1)
            heapq.heapreplace(by_tenant[tenant], (self.lines[line], line))
            heapq.heapreplace(heads, (self.tenants[tenant], tenant))
        return given

    def hand_back(self, line: Line, seats: int, weights: Mapping[str, int]) -> None:
        """Seats that were not used: the line had no more work, or its way was full."""
        self.lines[line] -= seats
        self.tenants[line[0]] -= seats / weights.get(line[0], 1)

    def _welcome(self, waiting: Sequence[Line]) -> None:
        """Clocks of those who wait; forget the others."""
        tenants = {line[0] for line in waiting}
        now = min((at for tenant, at in self.tenants.items() if tenant in tenants), default=0.0)
        self.tenants = {tenant: self.tenants.get(tenant, now) for tenant in tenants}
        starts: dict[str, float] = {}
        for line in waiting:
            if line in self.lines:
                starts[line[0]] = min(starts.get(line[0], self.lines[line]), self.lines[line])
        self.lines = {line: self.lines.get(line, starts.get(line[0], 0.0)) for line in waiting}
