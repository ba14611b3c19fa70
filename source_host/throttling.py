"""How much each vCPU has to be slowed for pre-copy to converge: a pure function of what a round has measured so far.

A round leaves the distinct pages that were written while it was sent; pre-copy converges where that is less than it sent, each
time. A page that is written again costs nothing, so the rate at which a guest dirties pages is large when a round begins and falls
as the round goes on. Hence two questions. *During* a round: going on as in the last moments, will it leave too much? The curve of
distinct pages only flattens, so this is an upper bound. *At its end*: what would each vCPU write in the next round? That lasts as
long as what is left takes to send, and how many pages a vCPU writes until then is read off this round's curve at its present pace
of commits: so a guest that has already been slowed enough is not slowed more for what it wrote before that, and one that had
written all of its working set, and therefore seemed to write nothing any more, is. The first round, which sends all of memory, is
asked the second question only: most guests write a part of their memory, and leave less than they have without being slowed.

Who is slowed: the vCPUs share what the link can take as water finds its level. Each may write up to one common rate, which those
that write less do not reach: they keep their full speed, and those above it are slowed down to it. How much: a little at a time, at
most to half of what a vCPU ran, and only until a round leaves AIM of what it sent. Less than that is given back, more slowly.

No clock and no state: `auto_converge.py` takes the readings and sets the throttles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: The share of what it sent that a round of a slowed guest is to leave: the dirty rate as a share of what the link carries. At 0.6
#: all rounds together take 2.5 times as long as the first of them; nearer to 1 the guest is slowed less, but for much longer.
AIM = 0.6
#: Above the one it is slowed more, below the other less.
HIGH, LOW = 0.7, 0.4
#: The most that one step changes of the time that a vCPU runs.
SLOWER, FASTER = 0.5, 1.25
#: So long before a round's end the next one is prepared for: one that is lost already, because all has been written in it that the
#: guest writes, is no reason to slow the guest for all of its time.
PREPARE_S = 2.0
#: A vCPU runs at least this share of its time; below it, what the vCPU loop needs to wake up is longer.
LEAST_RUNNING = 0.001

#: One number a vCPU. Shares of time in which a vCPU runs, 1 for not slowed, are called `running`.
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What each vCPU has done since its round began: distinct pages written, and commits."""

    elapsed_s: float
    written_pages: Floats
    commits: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """One round as far as it has come: how many pages it sends, and at least one reading, by time, none of its very beginning.

    `link_pages_per_s` is what the link carries in this round. `may_leave_pages` are few enough for the stun at that speed, however
    many were sent. `later_cost` is what a page of a later round takes of the link, of what one takes in this: less than 1 where the
    next one sends differences.
    """

    pages: int
    link_pages_per_s: float
    may_leave_pages: float
    readings: Sequence[Reading]
    later_cost: float = 1.0

    @property
    def last(self) -> Reading:
        return self.readings[-1]

    @property
    def lasts_s(self) -> float:
        """How long it takes as a whole."""
        return max(self.pages / self.link_pages_per_s, self.last.elapsed_s)

    @property
    def left_s(self) -> float:
        return self.lasts_s - self.last.elapsed_s

    @property
    def last_but_one(self) -> Reading:
        """The reading before the last one, or the round's beginning."""
        if len(self.readings) > 1:
            return self.readings[-2]
        zeros = np.zeros_like(self.last.commits)
        return Reading(0.0, zeros, zeros)


def during(course: Course, running: Floats) -> Floats:
    """Give the shares of time from now on, in the middle of a round that is not the first."""
    last, before = course.last, course.last_but_one
    grown_pages = np.maximum(last.written_pages - before.written_pages, 0.0)  # a guest may also give pages back
    growth_per_s = grown_pages / (last.elapsed_s - before.elapsed_s)
    leaves_pages = float((last.written_pages + growth_per_s * course.left_s).sum())
    cost_pages = course.later_cost * leaves_pages
    if cost_pages > max(HIGH * course.pages, course.may_leave_pages):
        # One reading alone cannot tell pages that are always written from a writer that goes on and on.
        if len(course.readings) == 1 and course.later_cost * last.written_pages.sum() <= HIGH * course.pages:
            return running
        allowed_pages = max(AIM * course.pages, course.may_leave_pages) / course.later_cost
        slower = _slower(running, growth_per_s, allowed_pages / course.lasts_s)
        return towards_end(course, running) if (slower == running).all() else slower
    if cost_pages < LOW * course.pages:
        # Late in a round few pages are left that were not yet written: the next one begins with all of them.
        return np.maximum(running, _for_next(course, leaves_pages, running))
    return running


def towards_end(course: Course, running: Floats) -> Floats:
    """Give the shares of time from now on, where a round is nearly over; the same until then."""
    return after(course, running) if course.left_s < PREPARE_S else running


def after(course: Course, running: Floats) -> Floats:
    """Give the shares of time from now on, at the end of a round, of which the last reading is."""
    return _for_next(course, float(course.last.written_pages.sum()), running)


def waterline(rates: Floats, allowed: float) -> float:
    """Find the rate that each may have so that all together have `allowed`, where nobody takes more than `rates` says.

    Infinite where nobody has to be kept from anything.
    """
    ascending = np.sort(rates)
    if ascending.sum() <= allowed:
        return float("inf")
    below = np.concatenate(([0.0], np.cumsum(ascending)[:-1]))
    levels = (allowed - below) / np.arange(ascending.size, 0, -1)
    return float(levels[np.argmax(levels <= ascending)])


def _for_next(course: Course, left_pages: float, running: Floats) -> Floats:
    """Decide for the next round, of so many pages: it takes them at the link's speed, and what this one took beyond that."""
    beyond_s = max(course.last.elapsed_s - course.pages / course.link_pages_per_s, 0.0)
    next_s = max(beyond_s + course.later_cost * left_pages / course.link_pages_per_s, 1e-6)
    writes, may_leave_pages = _writes_in(course, next_s), course.may_leave_pages / course.later_cost
    allowed_pages = max(AIM * left_pages, may_leave_pages)
    if writes.sum() > max(HIGH * left_pages, may_leave_pages):
        return _slower(running, writes / next_s, allowed_pages / next_s)
    if writes.sum() <= LOW * left_pages:
        return _faster(running, writes / next_s, allowed_pages / next_s)
    return running


def _writes_in(course: Course, duration_s: float) -> Floats:
    """Tell how many pages each vCPU would write in a round of that length, at the pace of its last commits."""
    last, before = course.last, course.last_but_one
    pace_per_s = (last.commits - before.commits) / (last.elapsed_s - before.elapsed_s)
    zeros = np.zeros((1, last.commits.size))
    commits = np.concatenate((zeros, [reading.commits for reading in course.readings]))
    written = np.concatenate((zeros, [reading.written_pages for reading in course.readings]))
    pages = np.empty_like(last.commits)
    for vcpu, wanted in enumerate(pace_per_s * duration_s):
        known = commits[-1, vcpu]
        if not known:
            pages[vcpu] = written[-1, vcpu]  # it has been in one and the same transaction all the time
        elif wanted <= known:
            pages[vcpu] = np.interp(wanted, commits[:, vcpu], written[:, vcpu])
        else:
            stretch = known - commits[-2, vcpu]
            slope = (written[-1, vcpu] - written[-2, vcpu]) / stretch if stretch else 0.0
            pages[vcpu] = written[-1, vcpu] + slope * (wanted - known)
    return pages


def _slower(running: Floats, rates: Floats, allowed: float) -> Floats:
    target = np.minimum(running, _shares(running, rates, allowed))
    return np.maximum(np.maximum(target, SLOWER * running), LEAST_RUNNING)


def _faster(running: Floats, rates: Floats, allowed: float) -> Floats:
    target = np.maximum(running, _shares(running, rates, allowed))
    return np.minimum(np.minimum(target, FASTER * running), 1.0)


def _shares(running: Floats, rates: Floats, allowed: float) -> Floats:
    """Share out an allowed rate: give the share of its time in which each vCPU reaches its part of it, 1 where it stays below."""
    unslowed = rates / running
    level = waterline(unslowed, allowed)
    return np.minimum(1.0, level / np.maximum(unslowed, 1e-9))
