"""What the scripts of both sides have in common: they speak and listen on links, by the real connections."""

from __future__ import annotations

from pagefire.protocol.messages import Message
from pagefire.protocol.ownership import Act, Event, Owner
from pagefire.protocol.state import Phase, Role, Side
from tests.protocol.exploration.core import Core, Wrong
from tests.protocol.exploration.world import Bounds, Frame, Frames, Links, at, having, put


class Script:
    """One side. Its methods are the scripts' steps; a broken world overrides one of them."""

    side: Side

    def __init__(self, core: Core, bounds: Bounds) -> None:
        self.core = core
        self.bounds = bounds

    def phase(self, links: Links, slot: int) -> Phase:
        link = at(links, slot)
        return link.source_phase if self.side is Side.SOURCE else link.dest_phase

    def _in_phase(self, links: Links, slot: int, phase: Phase) -> Links:
        name = "source_phase" if self.side is Side.SOURCE else "dest_phase"
        return put(links, slot, having(at(links, slot), name, phase))

    def say(self, links: Links, slot: int, name: str, *args: object) -> Links:
        """Send on the control connection; what is sent on a link that is gone goes nowhere."""
        frame, after = self.core.send(self.side, at(links, slot).role, self.phase(links, slot), name, *args)
        links = self._in_phase(links, slot, after)
        return links if at(links, slot).gone else self._append(links, slot, self._outgoing, frame)

    def may_say(self, links: Links, slot: int, name: str) -> bool:
        return self.core.may_send(self.side, at(links, slot).role, self.phase(links, slot), name)

    def hear(self, links: Links, slot: int) -> tuple[Message, Frame, Links]:
        """Receive the next frame of the control connection."""
        link = at(links, slot)
        frames: Frames = getattr(link, self._incoming)
        message, after = self.core.receive(self.side, link.role, self.phase(links, slot), frames[0])
        links = put(links, slot, having(link, self._incoming, frames[1:]))
        return message, frames[0], self._in_phase(links, slot, after)

    def stream(self, links: Links, slot: int, channel: str, role: Role, name: str, *args: object) -> Links:
        """Send on a page or fault connection."""
        frame, _ = self.core.send(self.side, role, Phase.ACTIVE, name, *args)
        return links if at(links, slot).gone or at(links, slot).stripped else self._append(links, slot, channel, frame)

    def take(self, links: Links, slot: int, channel: str, role: Role) -> tuple[Message, Frame, Links]:
        """Receive the next frame of a page or fault connection."""
        link = at(links, slot)
        frames: Frames = getattr(link, channel)
        message, _ = self.core.receive(self.side, role, Phase.ACTIVE, frames[0])
        return message, frames[0], put(links, slot, having(link, channel, frames[1:]))

    @property
    def _outgoing(self) -> str:
        return "to_dest" if self.side is Side.SOURCE else "to_source"

    @property
    def _incoming(self) -> str:
        return "to_source" if self.side is Side.SOURCE else "to_dest"

    def _append(self, links: Links, slot: int, channel: str, frame: Frame) -> Links:
        link = at(links, slot)
        return put(links, slot, having(link, channel, (*getattr(link, channel), frame)))

    def expect(self, act: Act, *wanted: Act) -> None:
        """The script asserts, or has no branch for anything else."""
        if act not in wanted:
            raise Wrong(f"the {self.side.value}'s script does not know what to do on {act.value!r} here")

    def require(self, holds: bool, why: str) -> None:
        if not holds:
            raise Wrong(why)

    def on(self, word: Owner, event: Event) -> tuple[Owner, Act]:
        return self.core.on(self.side, word, event)
