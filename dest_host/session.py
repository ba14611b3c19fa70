"""What the two hosts of one migration agreed on, as the destination holds it and leaves it with the guest."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pagefire.guest_workload.keepsake import Record
from pagefire.protocol import messages
from pagefire.protocol.messages import Offer


@dataclass(frozen=True, slots=True)
class Session:
    """`identity` names it, in logs and between the hosts; whoever knows the `secret` may join it or ask what became of it."""

    identity: bytes
    secret: bytes

    @classmethod
    def fresh(cls) -> Session:
        return cls(os.urandom(16), os.urandom(16))

    def record(self, offer: Offer) -> Record:
        """Give what a daemon needs that adopts the guest."""
        return {"identity": self.identity, "secret": self.secret, "offer": messages.encode(offer)}

    @classmethod
    def of_record(cls, record: Record) -> tuple[Session, Offer]:
        """Take back what `record` gave."""
        offer = messages.decode(Offer.kind, record["offer"])
        assert isinstance(offer, Offer)
        return cls(record["identity"], record["secret"]), offer
