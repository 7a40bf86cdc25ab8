"""The pictures that make the next step: whose, of which key, and in which order.

Users share the device's time evenly, then the keys of each user, with a credit for age. Within a run there is
a row for each user in turn; among the pictures of one user those that are soon done go first, unless others
have waited long. That keeps the mean wait short, and nobody waits for ever.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

from flux_trt.runtime.course import Course
from flux_trt.serving.limits import Limits
from flux_trt.serving.pace import Pace
from flux_trt.serving.shares import Shares
from flux_trt.serving.work import Work

NEW = 4  # pictures begun in a turn at most: each delays those under way by its encoding
AGE = 0.1  # seconds of device time that a second of waiting counts as

Place: TypeAlias = "tuple[Work, Course | None]"
"""A picture that is under way; None: the next of the work's that waits."""


class Choice:
    """Choose, and be told what it took."""

    def __init__(self, limits: Limits, pace: Pace) -> None:
        """Nobody has had any time."""
        self._limits, self._pace = limits, pace
        self._users = Shares[str]()
        self._keys: dict[str, Shares[Hashable]] = {}
        self._most = limits.active

    def at_most(self, active: int) -> None:
        """Begin no more than leaves so many under way: there is no memory for another."""
        self._most = min(self._most, active)

    def rest(self) -> None:
        """Nothing is under way: memory may be what it was."""
        self._most = self._limits.active

    def of(self, works: Sequence[Work]) -> list[Place]:
        """The pictures of the next step, all of one key, as many as share a run."""
        room = _Room(works, self._limits, self._most)
        wanting: dict[str, dict[Hashable, list[Work]]] = defaultdict(lambda: defaultdict(list))
        for work in works:
            if work.courses or (work.waiting and room.takes(work)):
                wanting[work.owner][work.key].append(work)
        users = self._users.least(wanting)
        if not users:
            return []
        self._keys = {user: self._keys.get(user) or Shares() for user in users}
        now, own = time.monotonic(), wanting[users[0]]
        ages = {key: AGE * (now - some[0].asked_at) for key, some in own.items()}
        key = self._keys[users[0]].least(own, ages)[0]
        order = _in_turns(self._urgent(wanting[user][key]) for user in users if key in wanting[user])
        return list(self._filling(order, self._rows(own[key][0]), room))

    def charge(self, rows: Sequence[tuple[Work, int]], seconds: float) -> None:
        """A run of these rows took so long."""
        whole = sum(count for _, count in rows)
        for work, count in rows:
            share = seconds * count / whole
            self._users.charge(work.owner, share)
            self._keys.setdefault(work.owner, Shares()).charge(work.key, share)

    def _rows(self, work: Work) -> int:
        """That share a run of its key."""
        found, most = self._limits.rows_of(work.pixels), work.model.most_rows
        return found if most is None else min(found, most)

    def _urgent(self, works: Iterable[Work]) -> list[Place]:
        """Pictures of one user and key, by the seconds that are left and when they were asked for."""
        found: list[tuple[float, Place]] = []
        for work in works:
            row = self._pace.of(work.model.id, work.tokens) * work.request.copies
            asked = AGE * work.asked_at
            found += [(row * course.left + asked, (work, course)) for course in work.courses]
            found += [(row * work.request.moves + asked, (work, None))] * len(work.waiting)
        return [place for _, place in sorted(found, key=lambda each: each[0])]

    def _filling(self, order: Iterable[Place], most: int, room: _Room) -> Iterator[Place]:
        """The first of them, up to so many rows; the very first whatever it takes."""
        rows = begun = 0
        for work, course in order:
            if course is None and (begun == NEW or not room.takes(work)):
                continue
            taken = work.request.copies if course is None else course.rows
            if rows and rows + taken > most:
                return
            if course is None:
                begun += 1
                room.take(work)
            rows += taken
            yield work, course


class _Room:
    """For pictures to be begun: each has buffers of its own until it is done."""

    def __init__(self, works: Iterable[Work], limits: Limits, most: int) -> None:
        self._most, self._adapted = most, limits.adapted
        self._active, self._loras = Counter[str](), set[tuple[str, Hashable]]()
        for work in works:
            if work.courses:
                self._active[work.owner] += len(work.courses)
                self._loras.add((work.model.id, work.adapted))

    def takes(self, work: Work) -> bool:
        """Whether another of its pictures may begin: nobody takes more than is left for the others."""
        left = self._most - self._active.total()
        new = bool(work.adapted) and (work.model.id, work.adapted) not in self._loras
        if new and sum(bool(loras) for _, loras in self._loras) >= self._adapted:
            return False
        return left > 0 and self._active[work.owner] < max(1, left)

    def take(self, work: Work) -> None:
        """One begins."""
        self._active[work.owner] += 1
        self._loras.add((work.model.id, work.adapted))


def _in_turns(queues: Iterable[Sequence[Place]]) -> Iterator[Place]:
    """One of each in turn, as long as there are any."""
    left = deque(map(iter, queues))
    while left:
        queue = left.popleft()
        for place in islice(queue, 1):
            yield place
            left.append(queue)
