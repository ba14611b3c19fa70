"""The walk: every step from every state of a bounded world, breadth first, so that the first way found to a state is a shortest.

A side's steps depend on that side and the links alone, so they are computed once for each such pair; the product of the two sides
is then a matter of numbers. States are four numbers, one each for source, destination, links and what the adversary has left.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pagefire.protocol.errors import ProtocolError
from tests.protocol.exploration import invariants
from tests.protocol.exploration.core import Core, Wrong
from tests.protocol.exploration.reception import DestScript
from tests.protocol.exploration.source import SourceScript
from tests.protocol.exploration.world import (
    BEFORE_COMMIT,
    Bounds,
    Budget,
    D,
    Dest,
    Kind,
    Links,
    S,
    Source,
    Step,
    World,
    at,
    put,
)

#: What a step costs the adversary.
_FREE, _CUT, _KILL, _DEATH = range(4)
_BITS = 24
#: (kind, cost, actor, links), as numbers.
Moves = list[tuple[int, int, int, int]]


class Found(AssertionError):
    """An invariant does not hold: which, and the shortest way there."""

    def __init__(self, why: str, trace: list[str], world: World) -> None:
        steps = "\n".join(f"  {number:2}. {label}" for number, label in enumerate(trace, 1))
        super().__init__(
            f"{why}, after {len(trace)} steps:\n{steps}\n  {world.source}\n  {world.dest}\n  {world.links}"
        )
        self.why, self.trace, self.world = why, trace, world


class _Numbers:
    """Gives each thing a number, the same each time."""

    def __init__(self) -> None:
        self.of: dict[Hashable, int] = {}
        self.things: list[Any] = []

    def __call__(self, thing: Hashable) -> int:
        number = self.of.setdefault(thing, len(self.things))
        if number == len(self.things):
            self.things.append(thing)
        return number


@dataclass(slots=True)
class Explored:
    """The graph, and the figures of the walk."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    walk_s: float = 0.0
    ends_s: float = 0.0
    #: How many states cannot come to a good end, by the reason.
    lost: dict[str, int] = field(default_factory=dict)
    #: States from which only a person's decision leads on.
    undecided: int = 0

    def line(self) -> str:
        lost = "; ".join(f"{count:,} {why}" for why, count in sorted(self.lost.items())) or "none"
        return (
            f"{self.states:,} states, {self.transitions:,} transitions, depth {self.depth}, "
            f"{self.walk_s:.1f} s to walk, {self.ends_s:.1f} s for the ends; without an end: {lost}; "
            f"where a person has to decide: {self.undecided:,}"
        )


class Exploration:
    """One world, walked. `run` walks it all and asks where its states lead; raises Found."""

    def __init__(
        self,
        bounds: Bounds,
        core: Core | None = None,
        source: type[SourceScript] = SourceScript,
        dest: type[DestScript] = DestScript,
    ) -> None:
        self.bounds = bounds
        self.core = core or Core(bounds.pages)
        self._source, self._dest = source(self.core, bounds), dest(self.core, bounds)
        self._sources, self._dests, self._links, self._budgets = _Numbers(), _Numbers(), _Numbers(), _Numbers()
        self._source_moves: dict[tuple[int, int, bool], Moves] = {}
        self._dest_moves: dict[tuple[int, int], Moves] = {}
        self._link_moves: dict[int, list[int]] = {}
        self._spent: list[list[int]] = []
        self._numbers: dict[int, int] = {}
        self._states: list[int] = []
        self._parents = array("i")
        self._from, self._to, self._kinds = array("i"), array("i"), array("b")
        self._checked: set[int] = set()

    # -- steps -------------------------------------------------------------------------------------------------------------------

    def _of_source(self, source: int, links: int, listening: bool) -> Moves:
        key = source, links, listening
        if key not in self._source_moves:
            self._source_moves[key] = [
                (step.kind, cost, self._sources(step.actor), self._links(step.links))
                for step, cost in self._source_steps(*self._side(self._sources, source, links), listening)
            ]
        return self._source_moves[key]

    def _source_steps(self, source: Source, links: Links, listening: bool) -> list[tuple[Step, int]]:
        script = self._source
        steps = [(step, _FREE) for step in script.steps(source, links, listening)]
        if source.at not in (S.IDLE, S.ENDED):
            if source.up:
                steps.append((script.killed(source, links), _KILL))
            if source.guest:
                steps.append((script.guest_killed(source, links), _DEATH))
        return steps

    def _of_dest(self, dest: int, links: int) -> Moves:
        key = dest, links
        if key not in self._dest_moves:
            self._dest_moves[key] = [
                (step.kind, cost, self._dests(step.actor), self._links(step.links))
                for step, cost in self._dest_steps(*self._side(self._dests, dest, links))
            ]
        return self._dest_moves[key]

    def _dest_steps(self, dest: Dest, links: Links) -> list[tuple[Step, int]]:
        script = self._dest
        steps = [(step, _FREE) for step in script.steps(dest, links)]
        busy = dest.at not in (D.OPEN, D.ARRIVED) or any(link is not None and link.dest_open for link in links)
        if dest.up and busy:
            steps.append((script.killed(dest, links), _KILL))
        if dest.guest and dest.at is not D.ARRIVED:
            steps.append((script.guest_killed(dest, links), _DEATH))
        return steps

    def _side(self, numbers: _Numbers, actor: int, links: int) -> tuple[Any, Links]:
        return numbers.things[actor], self._links.things[links]

    def _of_links(self, number: int) -> list[int]:
        """Cut each link that is whole."""
        if number not in self._link_moves:
            links = self._links.things[number]
            self._link_moves[number] = [self._links(cut) for _, cut in _cuts(links)]
        return self._link_moves[number]

    def _left(self, budget: int) -> list[int]:
        """Give, for each cost, the number of what is left afterwards; -1: it cannot be paid."""
        while len(self._spent) <= budget:
            left = self._budgets.things[len(self._spent)]
            assert isinstance(left, Budget)
            after = [
                self._budgets(left._replace(**{name: count - 1})) if count else -1
                for name, count in zip(left._fields, left, strict=True)
            ]
            self._spent.append([len(self._spent), *after])
        return self._spent[budget]

    # -- the walk ----------------------------------------------------------------------------------------------------------------

    def run(self) -> Explored:
        began_s = time.perf_counter()
        explored = Explored()
        world = self.bounds.beginning()
        self._reach(
            _pack(
                self._sources(world.source),
                self._dests(world.dest),
                self._links(world.links),
                self._budgets(world.budget),
            ),
            -1,
        )
        level_ends = 1
        at_state = 0
        while at_state < len(self._states):
            if at_state == level_ends:
                explored.depth, level_ends = explored.depth + 1, len(self._states)
            self._step_from(at_state)
            at_state += 1
        explored.states, explored.transitions = len(self._states), len(self._to)
        explored.walk_s = time.perf_counter() - began_s
        self._ask_for_ends(explored)
        explored.ends_s = time.perf_counter() - began_s - explored.walk_s
        return explored

    def _step_from(self, state: int) -> None:
        source, dest, links, budget = _unpack(self._states[state])
        left = self._left(budget)
        reach, note_from, note_to, note_kind = self._reach, self._from.append, self._to.append, self._kinds.append
        try:
            listening = self._dests.things[dest].up
            for kind, cost, actor, after in self._of_source(source, links, listening):
                if left[cost] >= 0:
                    note_from(state)
                    note_kind(kind)
                    note_to(reach(_pack(actor, dest, after, left[cost]), state))
            for kind, cost, actor, after in self._of_dest(dest, links):
                if left[cost] >= 0:
                    note_from(state)
                    note_kind(kind)
                    note_to(reach(_pack(source, actor, after, left[cost]), state))
            if left[_CUT] >= 0:
                for after in self._of_links(links):
                    note_from(state)
                    note_kind(Kind.ADVERSARY)
                    note_to(reach(_pack(source, dest, after, left[_CUT]), state))
        except (Wrong, ProtocolError) as error:
            raise self._found(f"{type(error).__name__}: {error}", state) from error

    def _reach(self, packed: int, parent: int) -> int:
        number = self._numbers.get(packed)
        if number is None:
            number = self._numbers[packed] = len(self._states)
            self._states.append(packed)
            self._parents.append(parent)
            pair = packed & (1 << 2 * _BITS) - 1
            if pair not in self._checked:
                self._checked.add(pair)
                world = self.world(number)
                try:
                    invariants.check(self.core, world.source, world.dest)
                except Wrong as wrong:
                    raise self._found(str(wrong), number) from None
        return number

    def world(self, state: int) -> World:
        source, dest, links, budget = _unpack(self._states[state])
        return World(
            self._sources.things[source],
            self._dests.things[dest],
            self._links.things[links],
            self._budgets.things[budget],
        )

    def places(self) -> set[S | D]:
        """Give every place that a script stood at."""
        return {source.at for source in self._sources.things} | {dest.at for dest in self._dests.things}

    # -- ends --------------------------------------------------------------------------------------------------------------------

    def _ask_for_ends(self, explored: Explored) -> None:
        """Ask from which states a good end can be reached without a further fault, and whether the others have a reason."""
        ended = self._where(lambda source, dest, links: not any(links) and invariants.good_end(self.core, source, dest))
        at_source = self._where(lambda source, dest, links: not any(links) and invariants.runs_at_source(source, dest))
        graph = _Backwards(self._from, self._to, self._kinds, len(self._states))
        helped = graph.leading_to(ended, Kind.PERSON)
        alone = graph.leading_to(ended, Kind.SCRIPT)
        home = graph.leading_to(at_source, Kind.PERSON)
        for state in np.flatnonzero(~helped).tolist():
            world = self.world(state)
            why = invariants.why_no_end(self.core, world.source, world.dest)
            if why is None:
                raise self._found(
                    "nothing leads to a running guest with all its pages, and nothing left half-way", state
                )
            explored.lost[why] = explored.lost.get(why, 0) + 1
        for state in np.flatnonzero(helped & ~alone).tolist():
            explored.undecided += 1
            if not invariants.person_needed(self.world(state).dest):
                raise self._found("only a person's decision leads on, and the destination has lost nothing", state)
        before = self._where(lambda source, dest, links: source.at in BEFORE_COMMIT and source.guest)
        for state in np.flatnonzero(before & ~home).tolist():
            raise self._found(
                "before the commit point, and nothing leads back to the guest running at the source", state
            )

    def _where(self, holds: Callable[[Source, Dest, Links], bool]) -> npt.NDArray[np.bool_]:
        known: dict[int, bool] = {}
        mask = (1 << 3 * _BITS) - 1
        result = np.zeros(len(self._states), np.bool_)
        for state, packed in enumerate(self._states):
            key = packed & mask
            if key not in known:
                world = self.world(state)
                known[key] = holds(world.source, world.dest, world.links)
            result[state] = known[key]
        return result

    # -- traces ------------------------------------------------------------------------------------------------------------------

    def _found(self, why: str, state: int) -> Found:
        states = [state]
        while self._parents[states[-1]] >= 0:
            states.append(self._parents[states[-1]])
        states.reverse()
        worlds = [self.world(one) for one in states]
        return Found(why, [self._label(a, b) for a, b in pairwise(worlds)], worlds[-1])

    def _label(self, before: World, after: World) -> str:
        """Find the step that led from one state to the next."""
        for step, _ in self._source_steps(before.source, before.links, before.dest.up):
            if (step.actor, step.links, before.dest) == (after.source, after.links, after.dest):
                return step.label
        for step, _ in self._dest_steps(before.dest, before.links):
            if (step.actor, step.links, before.source) == (after.dest, after.links, after.source):
                return step.label
        return next(label for label, cut in _cuts(before.links) if cut == after.links)


def _cuts(links: Links) -> list[tuple[str, Links]]:
    return [
        (f"link {slot} is cut", put(links, slot, at(links, slot)._replace(cut=True)))
        for slot in range(len(links))
        if links[slot] is not None and not at(links, slot).gone
    ]


def _pack(source: int, dest: int, links: int, budget: int) -> int:
    return source | dest << _BITS | links << 2 * _BITS | budget << 3 * _BITS


def _unpack(packed: int) -> tuple[int, int, int, int]:
    mask = (1 << _BITS) - 1
    return packed & mask, packed >> _BITS & mask, packed >> 2 * _BITS & mask, packed >> 3 * _BITS


class _Backwards:
    """The graph's edges by where they lead."""

    def __init__(self, sources: array[int], targets: array[int], kinds: array[int], states: int) -> None:
        targets_array = np.frombuffer(targets, np.int32)
        order = np.argsort(targets_array, kind="stable")
        self._sources = np.frombuffer(sources, np.int32)[order]
        self._kinds = np.frombuffer(kinds, np.int8)[order]
        self._begins = np.searchsorted(targets_array[order], np.arange(states + 1))

    def leading_to(self, ends: npt.NDArray[np.bool_], kind: Kind) -> npt.NDArray[np.bool_]:
        """Give the states from which steps of at most this kind lead to one of `ends`."""
        reached = ends.copy()
        frontier = np.flatnonzero(ends)
        while frontier.size:
            begins, counts = self._begins[frontier], self._begins[frontier + 1] - self._begins[frontier]
            offsets = np.arange(int(counts.sum())) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
            before = self._sources[offsets[self._kinds[offsets] <= kind]]
            frontier = np.unique(before[~reached[before]])
            reached[frontier] = True
        return reached
