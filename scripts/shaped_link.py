"""Two network namespaces of our own joined by a veth pair, each end shaped to a rate by a token bucket (tc-tbf(8)).

The token bucket delays nothing but what exceeds the rate: there is no added latency and no loss until its queue, 10 ms deep, is
full. TSO, GSO and GRO are switched off on both ends where `ethtool` is there. Where it is not they stay on: the sender hands tbf
segments of up to 64 KiB, which tbf takes apart itself where they are larger than its bucket; the rate holds either way, and
`measure_bps` says which rate that is. Headers count for tbf, so that TCP carries about 95% of what is asked for.

Everything is gone when the context ends, by whatever: a namespace takes its end of the pair and its shaping with it. Nothing
outside of the two namespaces is touched, the host's own interfaces least of all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from types import TracebackType

from pagefire.protocol.errors import FeatureMissing, PagefireError, UsageError
from pagefire.scripts.daemons import signals_deferred
from pagefire.scripts.demo import Place
from pagefire.scripts.tcp_transfer import transfer

#: Each link's namespaces see nothing but each other, so that all may have the same addresses.
_ADDRESSES = {"source": "10.213.8.1", "dest": "10.213.8.2"}
_QUEUE_S = 0.01
_BURST_S = 0.001
_LEAST_BURST_BYTES = 64 << 10
_MEASURE_S = 2.0
_COMMAND_S = 30.0
_UNITS = {"mbit": 10**6, "gbit": 10**9}


def parse_link_rate(given: str) -> int:
    """Read a link's rate in bits per second: 100mbit, 1gbit, 2.5gbit. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(mbit|gbit)", given.strip().lower())
    rate_bps = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    if rate_bps < 10**6:
        raise UsageError(f"{given!r} is no rate of a link", "a number and mbit or gbit is", "write --link-rate 1gbit")
    return rate_bps


class ShapedLink:
    """A context: inside it the link exists. `before` gives the command that runs another on a side of it."""

    _made = 0

    def __init__(self, rate_bps: int) -> None:
        self._rate_bps = rate_bps
        ShapedLink._made += 1
        unique = f"{os.getpid()}-{ShapedLink._made}"
        self._namespaces = {"source": f"pf-{unique}-s", "dest": f"pf-{unique}-d"}

    @property
    def dest_address(self) -> str:
        return _ADDRESSES["dest"]

    def before(self, side: str) -> list[str]:
        """Give the words that run a command on a side (source or dest); `ip` becomes that command."""
        return ["ip", "netns", "exec", self._namespaces[side]]

    @property
    def place(self) -> Place:
        """Where daemons on its two sides live. Nobody else is on this link, and what encryption costs is not what is looked at."""
        return Place(tuple(self.before("source")), tuple(self.before("dest")), self.dest_address, ("--insecure",))

    @classmethod
    def require_possible(cls) -> None:
        """Raise FeatureMissing, naming what is missing, where such a link cannot be made. Makes one to find out."""
        if os.geteuid() != 0:
            raise FeatureMissing("no shaped link can be made", "network namespaces need root")
        for command in ("ip", "tc"):
            if shutil.which(command) is None:
                raise FeatureMissing("no shaped link can be made", f"there is no `{command}` command (iproute2)")
        with cls(10**9):
            pass

    def __enter__(self) -> ShapedLink:
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with signals_deferred():
            for namespace in self._namespaces.values():
                _run("ip", "netns", "delete", namespace)

    def _make(self) -> None:
        source, dest = self._namespaces.values()
        for namespace in (source, dest):
            _need("network namespaces", "ip", "netns", "add", namespace)
            _need("network namespaces", "ip", "-n", namespace, "link", "set", "lo", "up")
        # Both ends are born inside: nothing of it ever shows in the host's own namespace.
        _need(
            "veth pairs", "ip", "link", "add", "pf0", "netns", source, "type", "veth", "peer", "pf0", "netns", dest
        )  # fmt: skip
        burst_bytes = max(_LEAST_BURST_BYTES, round(self._rate_bps / 8 * _BURST_S))
        for side, namespace in self._namespaces.items():
            _need("veth pairs", "ip", "-n", namespace, "address", "add", f"{_ADDRESSES[side]}/24", "dev", "pf0")
            if shutil.which("ethtool") is not None:
                _run(*self.before(side), "ethtool", "-K", "pf0", "tso", "off", "gso", "off", "gro", "off")
            _need("veth pairs", "ip", "-n", namespace, "link", "set", "pf0", "up")
            _need(
                "the token bucket (tc-tbf)", "tc", "-n", namespace, "qdisc", "add", "dev", "pf0", "root", "tbf",
                "rate", f"{self._rate_bps}bit", "burst", str(burst_bytes), "latency", f"{_QUEUE_S * 1e3:g}ms",
            )  # fmt: skip

    def measure_bps(self, seconds: float = _MEASURE_S) -> float:
        """Send plain TCP from source to dest for some seconds; gives the payload's bits per second. Raises PagefireError."""
        try:
            return transfer(self.before("source"), self.before("dest"), self.dest_address, seconds).bits_per_s
        except (subprocess.SubprocessError, ValueError) as error:
            raise PagefireError("the shaped link carried no TCP transfer", str(error), "") from error


def _need(feature: str, *command: str) -> None:
    said = _run(*command)
    if said is not None:
        raise FeatureMissing("no shaped link can be made", f"{feature} cannot be had: `{' '.join(command)}`: {said}")


def _run(*command: str) -> str | None:
    """Run a command in a session of its own, out of reach of a Ctrl-C at the terminal; gives what it said if it failed."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_COMMAND_S, start_new_session=True
    )
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else None
