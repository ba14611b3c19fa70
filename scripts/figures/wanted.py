"""What a scenario wants to see: `[[figure]]` of its file, parsed.

kind      timeline      commits per 10 ms of each case's run with the median stun, phases shaded
          lines         a quantity (y) by a numeric parameter (x), a line for each value of another (by)
          bars          a quantity (y) by any parameter (x), a bar for each value of another (by)
          heatmap       a quantity (y) by two parameters (x, by), a cell for each pair
          distribution  the share of runs in which a quantity (y) was no more than so much, a step line for each value of `by`
          parts         what the downtime was made of, by a parameter (x)
where     parameter = value, or a list of them: only cases that have one of these
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pagefire.protocol.errors import UsageError
from pagefire.scripts.experiment.parameters import Value, meant, parameter
from pagefire.scripts.figures.quantities import QUANTITIES

Json = dict[str, Any]

#: Kind -> the keys that it needs, and those that it may have beside `kind`, `title` and `where`.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "timeline": ((), ()),
    "lines": (("x", "y"), ("by",)),
    "bars": (("x", "y"), ("by",)),
    "heatmap": (("x", "by", "y"), ()),
    "distribution": (("y",), ("by",)),
    "parts": (("x",), ()),
}
_ALWAYS = ("kind", "title", "where")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`x` and `by` name parameters, `y` a quantity; empty where the kind has none."""

    kind: str
    title: str
    x: str = ""
    y: str = ""
    by: str = ""
    where: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def as_json(self) -> Json:
        """Give it as experiment.json holds it; `parse_wanted` takes it back."""
        return {key: value for key, value in asdict(self).items() if value} | (
            {"where": {name: list(values) for name, values in self.where.items()}} if self.where else {}
        )


def parse_wanted(said: Any, where: str) -> Wanted:
    """Read one figure; raises UsageError that begins with `where`."""
    if not isinstance(said, dict) or said.get("kind") not in KINDS:
        raise UsageError(
            f"{where} has no kind that is known", f"known are {', '.join(KINDS)}", 'write kind = "bars", or another'
        )
    needed, may = KINDS[said["kind"]]
    known = (*_ALWAYS, *needed, *may)
    for key in said:
        if key not in known:
            raise UsageError(
                f"{where}: `{key}` is unknown", f"{said['kind']} takes {', '.join(known)}", meant(key, known)
            )
    for key in needed:
        if key not in said:
            raise UsageError(
                f"{where}: `{key}` is missing", f"{said['kind']} needs {', '.join(needed)}", f"say which: {key} = ..."
            )
    if "y" in said and said["y"] not in QUANTITIES:
        raise UsageError(
            f"{where}: there is no quantity {said['y']!r}",
            f"known are {', '.join(QUANTITIES)}",
            meant(str(said["y"]), QUANTITIES),
        )
    for key in ("x", "by"):
        if key in said:
            parameter(str(said[key]), f"{where}: `{key}`")
    filters = said.get("where", {})
    if not isinstance(filters, dict):
        raise UsageError(f"{where}: `where` is {filters!r}", "it is a table", "write where = { vcpus = 2 }")
    chosen = {
        name: tuple(
            parameter(name, f"{where}: where").read(value, f"{where}: where")
            for value in (given if isinstance(given, list) else [given])
        )
        for name, given in filters.items()
    }
    title = said.get("title") or _title(said)
    return Wanted(
        said["kind"], str(title), str(said.get("x", "")), str(said.get("y", "")), str(said.get("by", "")), chosen
    )


def _title(said: Json) -> str:
    """Make a title of what is drawn."""
    if said["kind"] == "timeline":
        return "Commits over time"
    what = QUANTITIES[said["y"]].title if "y" in said else "What the downtime is made of"
    over = " and ".join(str(said[key]) for key in ("x", "by") if key in said)
    return f"{what[0].upper()}{what[1:]}" + (f" by {over}" if over else "")
