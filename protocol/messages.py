"""Every message, as a frozen dataclass, and its msgpack body.

A message that exists is valid: `decode` builds it field by field from the annotations and refuses anything else by name. The
body is a msgpack map from field name to value; a `PageSet` is a pair of binaries (starts as u64, counts as u64, little-endian).
Payload bytes (page contents, the switchover's bitmap) travel behind the body, see frames.py. README.md specifies all of it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack
import numpy as np

from pagefire.protocol.errors import RemoteProtocolError
from pagefire.protocol.pages import PageSet

#: Pages that one frame with contents, or a Fetch, names at most (8 MiB), and runs, ZeroPages' too: what a receiver has to hold.
MAX_FRAME_PAGES = 2048
MAX_FRAME_RUNS = 512
#: Pages that one Pages names at most where both ends can and nobody holds them (32 MiB): they go straight into the guest's memory.
MAX_LONG_FRAME_PAGES = 8192
#: Zero pages that one frame names at most (256 MiB of them).
MAX_ZERO_PAGES = 1 << 16
#: Transactions that one Aftermath tells the latencies of at most.
MAX_LATENCIES = 1 << 16
#: Runs that one Populate carries at most.
MAX_EXTENT_RUNS = 40_000


@dataclass(frozen=True, slots=True)
class Message:
    """A message; `kind` is its number on the wire."""

    kind: ClassVar[int]


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """First on every connection, from the source. `session` and `secret` are empty on the control connection, which begins one.

    role: control, recovery (takes up a session again), pages or fault. index numbers the page connections from 0. `silence_s`:
    after how long without a word the sender gives the peer up, which speaks up (`Alive`) four times as often.
    """

    kind = 1
    versions: list[int]
    capabilities: list[str]
    role: str
    index: int
    session: bytes
    secret: bytes
    software: str
    name: str
    silence_s: float


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The destination joins. `machine` is equal on both sides where they share one clock (boot id and time namespace)."""

    kind = 2
    version: int
    capabilities: list[str]
    session: bytes
    secret: bytes
    software: str
    machine: str
    silence_s: float


@dataclass(frozen=True, slots=True)
class Failure(Message):
    """Either side ends the migration before the commit point: refused, failed or cancelled, in a person's words."""

    kind = 3
    outcome: str
    what: str
    why: str
    do: str


@dataclass(frozen=True, slots=True)
class ClockProbe(Message):
    """The source asks what time it is; `sent_ns` comes back."""

    kind = 4
    sent_ns: int


@dataclass(frozen=True, slots=True)
class ClockReading(Message):
    kind = 5
    sent_ns: int
    here_ns: int


@dataclass(frozen=True, slots=True)
class Offer(Message):
    """The guest that wants to come, and how."""

    kind = 6
    name: str
    memory_bytes: int
    resident_bytes: int
    working_set_bytes: int
    page_bytes: int
    backing: str
    vcpus: int
    workload: str
    seed: int
    rate: float | None
    mode: str
    streams: int
    check: bool
    settle_s: float


@dataclass(frozen=True, slots=True)
class Accept(Message):
    """The destination holds a parked shell of the guest and waits for pages."""

    kind = 7
    guest_pid: int
    setup_s: float


@dataclass(frozen=True, slots=True)
class Populate(Message):
    """`--populate`: take memory for these pages before the first round brings them."""

    kind = 8
    pages: PageSet


@dataclass(frozen=True, slots=True)
class Populated(Message):
    """The memory has been taken."""

    kind = 9


@dataclass(frozen=True, slots=True)
class Alive(Message):
    """Nothing to say, but here: so that silence means something."""

    kind = 10


@dataclass(frozen=True, slots=True)
class Pages(Message):
    """Contents of `pages`, in ascending order, as payload."""

    kind = 16
    pages: PageSet


@dataclass(frozen=True, slots=True)
class ZeroPages(Message):
    """These pages hold only zeros now, whatever was sent before."""

    kind = 17
    pages: PageSet


@dataclass(frozen=True, slots=True)
class RoundEnd(Message):
    """Everything of this round that this connection carries has been sent."""

    kind = 18
    round: int


@dataclass(frozen=True, slots=True)
class RoundReceived(Message):
    """The round's marker has arrived on every page connection, and all before it is in memory."""

    kind = 19
    round: int


@dataclass(frozen=True, slots=True)
class CompressedPages(Message):
    """Contents of `pages`, in ascending order, as payload: packed together by `codec` (codecs.py) into fewer bytes."""

    kind = 20
    pages: PageSet
    codec: str


@dataclass(frozen=True, slots=True)
class Foretold(Message):
    """The guest is about to be stopped. Payload: the bitmap of what the destination would need if it stood still now.

    What is coded and noted here need not be in the stun.
    """

    kind = 21
    bitmap_form: str
    remaining_pages: int


@dataclass(frozen=True, slots=True)
class DeltaPages(Message):
    """What `pages` differ by from their last versions: contents XOR what the destination holds, packed as CompressedPages are."""

    kind = 22
    pages: PageSet
    codec: str


@dataclass(frozen=True, slots=True)
class Switchover(Message):
    """The guest stands still. Payload: the registers, the bitmap of what the destination still needs, the swap bitmap.

    Where pages were foretold, the bitmap holds what has to be added to them, and `hot` what is taken from them.

    The swap bitmap, the last `swapped_bytes` (compacted; none if 0), names further pages that it needs: those that the source has
    swapped out, which move last. `remaining_pages` counts the pages of both bitmaps.

    `commits` counts each vCPU's commits since the guest was born. `last_round` is the last round that has begun: it may still be
    under way, and READY is not sent before its marker has arrived. `hot` are pages of the guest that its vCPUs kept writing until
    they stopped: here by then, and to be shown to the guest before it runs.
    """

    kind = 32
    registers_bytes: int
    bitmap_form: str
    remaining_pages: int
    commits: list[int]
    last_round: int
    hot: PageSet
    stop_at: int
    swapped_bytes: int


@dataclass(frozen=True, slots=True)
class Ready(Message):
    """The destination could run the guest at once; it does not yet own it. What it did, in this order, in seconds."""

    kind = 33
    decode_s: float
    drain_s: float
    install_s: float


@dataclass(frozen=True, slots=True)
class PageDigests(Message):
    """`--verify`: the digests (16 bytes each, payload) of these pages at the source, to be compared."""

    kind = 34
    pages: PageSet


@dataclass(frozen=True, slots=True)
class DigestsCompared(Message):
    kind = 35
    differing: PageSet


@dataclass(frozen=True, slots=True)
class Handover(Message):
    """The commit point has passed: the source has relinquished the guest."""

    kind = 36


@dataclass(frozen=True, slots=True)
class Resumed(Message):
    """The guest runs at the destination. Times are of its clock."""

    kind = 37
    handover_received_ns: int
    resumed_ns: int


@dataclass(frozen=True, slots=True)
class Taken(Message):
    """The answer to a recovery: the destination has the guest. Payload: the compacted bitmap of the pages that it still misses.

    Times are of its clock, as in `Resumed`; 0 where a daemon that was restarted does not know them.
    """

    kind = 38
    remaining_pages: int
    handover_received_ns: int
    resumed_ns: int


@dataclass(frozen=True, slots=True)
class Fenced(Message):
    """The destination has not taken the guest and never will, in a person's words: the guest is the source's again."""

    kind = 39
    outcome: str
    what: str
    why: str
    do: str


@dataclass(frozen=True, slots=True)
class Noted(Message):
    """The source has noted the destination's last word (`Fenced`, `Perished`), which may forget the session."""

    kind = 40


@dataclass(frozen=True, slots=True)
class Perished(Message):
    """The destination had taken the guest, and its process has ended there."""

    kind = 41
    why: str


@dataclass(frozen=True, slots=True)
class Fetch(Message):
    """A vCPU waits for these pages; on the fault connection."""

    kind = 48
    pages: PageSet


@dataclass(frozen=True, slots=True)
class Resident(Message):
    """No page is missing at the destination any more; the source may free its copy."""

    kind = 49
    resident_ns: int
    pushed_pages: int
    faulted_pages: int
    duplicate_pages: int
    minor_faults: int
    fault_us: list[float]
    blocktime_s: float


@dataclass(frozen=True, slots=True)
class Released(Message):
    """The source has freed the guest's memory."""

    kind = 50


@dataclass(frozen=True, slots=True)
class Aftermath(Message):
    """How the guest fared at the destination: the last message of a migration. Times are of the destination's clock.

    `first_commits_ns` holds one reading a vCPU, 0 for one that has not committed. `buckets` are commits per 10 ms from
    `buckets_since_ns` on. `check_problems` is empty when the workload's own check found none; `committed_in_memory` is the sum of
    the sequence numbers found in guest memory, -1 where the workload keeps none; `commits_here` what the vCPUs counted here;
    `check_names` and `check_counts` are what else the check counted, and go in pairs.

    `latencies` tells of transactions whose clients waited for them, but for the first of each vCPU: pairs of u32, little-endian,
    in order, the microseconds from `buckets_since_ns` to the end of one and those that it took; of so many (`latencies_every`) each
    time one. Empty where the workload has no clients.
    """

    kind = 51
    first_commits_ns: list[int]
    buckets_since_ns: int
    buckets: list[int]
    cpu_dest_s: float
    cpu_guest_s: float
    dest_own_bytes: int
    dest_tables_bytes: int
    guest_tables_bytes: int
    checked: bool
    check_problems: list[str]
    committed_in_memory: int
    commits_here: int
    check_pause_s: float
    check_names: list[str]
    check_counts: list[int]
    latencies: bytes
    latencies_every: int


M = typing.TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Give the msgpack body of a message."""
    fields = {f.name: _plain(getattr(message, f.name)) for f in dataclasses.fields(message)}
    packed: bytes = msgpack.packb(fields)
    return packed


def decode(kind: int, body: bytes) -> Message:
    """Build the message of a frame; raises RemoteProtocolError naming the message and the field."""
    message_class = CLASSES.get(kind)
    if message_class is None:
        raise RemoteProtocolError("the peer sent an unknown message", f"kind {kind}")
    try:
        fields = msgpack.unpackb(body, max_ext_len=0, object_pairs_hook=_each_once)
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"the peer sent a broken {message_class.__name__}", str(error)) from error
    builders = _BUILDERS[message_class]
    if not isinstance(fields, dict) or fields.keys() != builders.keys():
        raise RemoteProtocolError(f"the peer sent a broken {message_class.__name__}", "wrong fields")
    try:
        return message_class(**{name: build(fields[name]) for name, build in builders.items()})
    except (ValueError, TypeError, OverflowError) as error:
        raise RemoteProtocolError(f"the peer sent a broken {message_class.__name__}", str(error)) from error


def _each_once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    # Of a field that came twice one receiver would take the first value, another one the last.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field came twice")
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, PageSet):
        return [value.starts.astype("<u8").tobytes(), value.counts.astype("<u8").tobytes()]
    return value


def _build_page_set(value: Any) -> PageSet:
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, bytes) for part in value)):
        raise ValueError("a page set is a pair of binaries")
    starts, counts = (np.frombuffer(part, "<u8") for part in value)
    if starts.size != counts.size:
        raise ValueError("as many starts as counts are needed")
    if starts.size and (int(starts.max()) >= 1 << 52 or int(counts.max()) >= 1 << 52):
        raise ValueError("a page number beyond 2^52")
    return PageSet(starts.astype(np.int64), starts.astype(np.int64) + counts.astype(np.int64))


def _exactly(expected: type) -> Callable[[Any], Any]:
    def build(value: Any) -> Any:
        if type(value) is not expected:
            raise ValueError(f"{expected.__name__} expected, {type(value).__name__} came")
        if type(value) is int and not -1 <= value < 1 << 64:
            raise ValueError(f"{value} is out of range")
        if type(value) is float and not math.isfinite(value):
            raise ValueError(f"{value} is no number")
        return value

    return build


def _list_of(build_item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build(value: Any) -> Any:
        if type(value) is not list:
            raise ValueError(f"list expected, {type(value).__name__} came")
        return [build_item(item) for item in value]

    return build


def _optional(build_value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else build_value(value)


def _builder(annotation: Any) -> Callable[[Any], Any]:
    if annotation is PageSet:
        return _build_page_set
    if typing.get_origin(annotation) is list:
        return _list_of(_builder(typing.get_args(annotation)[0]))
    if typing.get_origin(annotation) is types.UnionType:
        (inner,) = (part for part in typing.get_args(annotation) if part is not type(None))
        return _optional(_builder(inner))
    return _exactly(annotation)


#: By kind. Not `Message.__subclasses__()`: slots make each class anew, and the first one is listed there until it is collected.
CLASSES: dict[int, type[Message]] = {
    c.kind: c for c in tuple(globals().values()) if isinstance(c, type) and issubclass(c, Message) and c is not Message
}
_BUILDERS: dict[type[Message], dict[str, Callable[[Any], Any]]] = {}
for _class in CLASSES.values():
    _hints = typing.get_type_hints(_class)
    _BUILDERS[_class] = {f.name: _builder(_hints[f.name]) for f in dataclasses.fields(_class)}
