"""A convergence policy of one's own, for `--policy`: when pre-copy ends, decided by a function of a user's.

It has the signature of `convergence.judge`, and takes its place: called after each round, on the daemon's loop, with the rounds so
far, what the person allows, and the seconds since the first round began. It sees what the built-in rule sees, may call it, and has
no other limit than its own: `--max-rounds` and `--max-time` are its to look at. What it raises, or gives that is no verdict, ends
the migration before its commit point, with the guest running at the source.

The name comes over the control socket, from the same user who started the daemon, never from a peer: it is code, and runs here.
"""

from __future__ import annotations

from collections.abc import Callable

from pagefire.guest_workload.registry import user_module
from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.protocol.report import Round
from pagefire.source_host import convergence
from pagefire.source_host.convergence import Limits, Verdict

Judge = Callable[[list[Round], Limits, float], Verdict]

#: What the report calls the rule of convergence.py.
BUILT_IN = "built-in"
#: What may follow the end of pre-copy.
_FOLLOWS = ("switch", "postcopy", "cancel")


def judge_named(name: str | None) -> Judge:
    """Import a policy, module:function or path/file.py:function; None: the built-in one. Raises UsageError."""
    if name is None:
        return convergence.judge
    place, _, function = name.rpartition(":")
    try:
        found = getattr(user_module(place), function)
    except Exception as error:
        raise UsageError(
            f"the policy {name!r} cannot be loaded",
            f"{type(error).__name__}: {error}",
            "name it module:function or path/file.py:function",
        ) from error
    if not callable(found):
        raise UsageError(f"{name!r} is no policy", "it cannot be called", "see docs/convergence.md")

    def judge(rounds: list[Round], limits: Limits, elapsed_s: float) -> Verdict:
        try:
            verdict = found(rounds, limits, elapsed_s)
        except Exception as error:
            raise PagefireError(
                f"the policy {name} failed", f"{type(error).__name__}: {error}", "mend it, or leave out --policy"
            ) from error
        if not isinstance(verdict, Verdict) or (verdict.stop and verdict.then not in _FOLLOWS):
            follows = ", ".join(_FOLLOWS)
            raise PagefireError(
                f"the policy {name} gave no verdict",
                f"{verdict!r}",
                f"give a Verdict; after a stop one of {follows} follows",
            )
        return verdict

    return judge
