"""The migrations that `pagefire compare` lays beside each other: vSphere 6.7's way, vSphere 7's, ours, and what lies between.

Three enhancements lead from 6.7 to 7: the loose install by a claimed vCPU, the coarse granularity that is broken down where it
fires, the compacted bitmap. The ablation takes 6.7 with each of them alone, and 7 without each. `ours` installs rolling and breaks
down where it pays. Whatever is not named here is the same for all: mode hybrid, one page connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pagefire.protocol.pages import GRANULE_PAGES, PAGE_BYTES
from pagefire.source_host.options import MigrationOptions

#: The share of its commits that a guest may lose before a considerate install waits; the post knows no such thing.
_OUR_MOST_LOSS = 0.03
_GIB_PAGES = (1 << 30) // PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to migrate.

    install: stop, loose or rolling; tracer: vcpu or host; granularity: 4K, 2M or auto; bitmap: raw or compacted; foretell: sent
    ahead of the stun.
    """

    name: str
    install: str
    tracer: str
    granularity: str
    bitmap: str
    most_loss: float | None = None
    foretell: bool = False

    @property
    def what(self) -> tuple[str, str, str, str]:
        """Give what it does, without its name."""
        return self.install, self.tracer, self.granularity, self.bitmap

    @property
    def words(self) -> str:
        """Say what it does in a few words."""
        by = " by a claimed vCPU" if (self.install, self.tracer) == ("loose", "vcpu") else ""
        return f"{self.install}{by}, {self.granularity}, {self.bitmap} bitmap"

    def options(self, settle_s: float) -> MigrationOptions:
        """Give a migration's options, but for its destination.

        2 MiB mappings are protected by runs, or GiB after GiB just before they are sent; 4 KiB ones in 2 MiB steps.
        """
        coarse_step_pages = _GIB_PAGES if self.install == "rolling" else None
        return MigrationOptions(
            to="",
            mode="hybrid",
            install=self.install,
            tracer=self.tracer,
            granularity=self.granularity,
            install_step_pages=GRANULE_PAGES if self.granularity == "4K" else coarse_step_pages,
            install_most_loss=self.most_loss,
            bitmap=self.bitmap,
            foretell=self.foretell,
            settle_s=settle_s,
        )


#: The enhancements as the fields that they set.
ENHANCEMENTS: dict[str, dict[str, Any]] = {
    "loose": {"install": "loose", "tracer": "vcpu"},
    "coarse": {"granularity": "2M"},
    "compacted": {"bitmap": "compacted"},
}
_BEFORE: dict[str, dict[str, Any]] = {
    "loose": {"install": "stop", "tracer": "vcpu"},
    "coarse": {"granularity": "4K"},
    "compacted": {"bitmap": "raw"},
}
_V67 = Profile("6.7", "stop", "vcpu", "4K", "raw")
_V7 = Profile("7", "loose", "vcpu", "2M", "compacted")

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        _V67,
        _V7,
        Profile("ours", "rolling", "host", "auto", "compacted", _OUR_MOST_LOSS, foretell=True),
        *(replace(_V67, name=f"6.7 + {name}", **fields) for name, fields in ENHANCEMENTS.items()),
        *(replace(_V7, name=f"7 - {name}", **fields) for name, fields in _BEFORE.items()),
    )
}
VSPHERE = ("6.7", "7", "ours")
ABLATION = tuple(name for name in PROFILES if name not in VSPHERE)


def on_backing(names: Iterable[str], backing: str) -> tuple[list[Profile], dict[str, str]]:
    """Give the profiles as guest memory of this backing lets them be, and the name of the one that each left out would repeat.

    Memory that is not mapped by 2 MiB pages (4k) has nothing coarse to protect: granularity stays 4K in every profile.
    """
    kept: dict[tuple[str, str, str, str], Profile] = {}
    repeated: dict[str, str] = {}
    for name in names:
        profile = PROFILES[name] if backing == "thp" else replace(PROFILES[name], granularity="4K")
        if (first := kept.setdefault(profile.what, profile)) is not profile:
            repeated[name] = first.name
    return list(kept.values()), repeated
