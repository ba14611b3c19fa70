"""What a case's parameters mean is what the command line means by them, and its command says the same."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest
import typer

from pagefire.protocol.errors import PagefireError, UsageError
from pagefire.scripts.cli import app
from pagefire.scripts.experiment.faults import KINDS, MOMENTS, Fault, parse_fault
from pagefire.scripts.experiment.job import Job, make_job
from pagefire.scripts.experiment.lab_site import InLab, link_of
from pagefire.scripts.experiment.one_migration import Ran
from pagefire.scripts.experiment.parameters import PARAMETERS, SECTIONS, Values, given, profile_options
from pagefire.scripts.experiment.scenario import parse_scenario
from pagefire.scripts.experiment.site import Loopback, site_of
from pagefire.scripts.experiment.sweep import tasks_of
from pagefire.scripts.experiment.work import Work, outcome_of
from pagefire.scripts.lab.shape import shape_of
from pagefire.scripts.move_options import MoveOptions
from pagefire.scripts.options import GuestOptions, TracingOptions
from pagefire.scripts.profiles import PROFILES

DEMO: Any = typer.main.get_command(app).commands["demo"]  # type: ignore[attr-defined]
LAB: Any = typer.main.get_command(app).commands["lab"]  # type: ignore[attr-defined]


LINK_NAMES = ("delay", "jitter", "loss", "link_rate", "reorder", "netem")


def job_of(**values: Any) -> Job:
    return make_job(
        {"memory": "64MiB", **{name.replace("_", "-"): value for name, value in values.items()}}, 3, "1s", "here"
    )


def test_every_parameter_is_an_option_of_demo_or_of_lab_or_ours() -> None:
    of_demo, of_lab = ({option for one in command.params for option in one.opts} for command in (DEMO, LAB))
    assert {name for name, one in PARAMETERS.items() if one.option not in of_lab} == {"profile", "fault"}
    beyond_demo = {name for name, one in PARAMETERS.items() if one.option not in of_demo}
    assert {PARAMETERS[name].section for name in beyond_demo} == {"options", "link"}
    assert {name for name, one in PARAMETERS.items() if one.section == "link"} < beyond_demo
    assert {one.section for one in PARAMETERS.values()} == set(SECTIONS)


def test_values_mean_what_the_command_line_means() -> None:
    job = job_of(
        mode="precopy", downtime_limit="300ms", vcpus=4, foretell=False, rate="2k/s", streams=2, cpus_guest="0"
    )
    assert (job.config.memory_bytes, job.config.vcpus, job.config.seed, job.config.rate) == (64 << 20, 4, 3, 2000)
    assert (job.options.mode, job.options.downtime_limit_s, job.options.foretell, job.options.streams) == (
        "precopy",
        0.3,
        False,
        2,
    )
    assert (job.warmup_s, job.link, job.fault) == (1.0, {}, None)
    assert job.pins["--cpus-guest"] == "0"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mode": "precopy", "foretell": False, "auto-converge": True, "verify": False, "check": True, "rate": "5k/s"},
        {"profile": "7 - loose", "backing": "4k", "granularity": "4K", "install-step": "2M"},
        {
            "workload": "pagefire.scripts.bench.text_workload:Text",
            "prefetch": 8,
            "max-bandwidth": "default",
            "cpus-guest": "0",
        },
    ],
)
def test_the_command_says_the_same(values: Values) -> None:
    job = make_job({"memory": "64MiB", **values}, 3, "1s", "here")
    words = shlex.split(job.command("demo", "1s"))
    assert words[:2] == ["pagefire", "demo"]
    said = DEMO.make_context("demo", words[2:]).params

    def group(kind: Any) -> Any:
        return kind(**{field.name: said[field.name] for field in dataclasses.fields(kind)})

    tracing = group(TracingOptions)
    assert group(GuestOptions).config() == job.config
    assert group(MoveOptions).migration("", tracing) == job.options
    assert said["warmup"] == "1s"
    assert said["cpus_guest"] == job.pins["--cpus-guest"]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_its_options(name: str) -> None:
    profile = PROFILES[name]
    said = profile_options(profile)
    assert given({"profile": name, "bitmap": "raw"}) == {**said, "bitmap": "raw"}
    tracing = TracingOptions(
        **{
            key.replace("-", "_"): said[key]
            for key in ("install", "tracer", "granularity", "install-step", "install-loss")
        }
    )  # type: ignore[arg-type]
    options = MoveOptions(
        mode=str(said["mode"]), bitmap=str(said["bitmap"]), foretell=bool(said["foretell"]), settle="2s"
    )
    assert options.migration("", tracing) == profile.options(2.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "sideways"}, "here: --mode sideways is unknown"),
        ({"memory": "lots"}, "here: 'lots'"),
        ({"profile": "8"}, "there is no profile '8'"),
        ({"fault": "rain"}, "here: 'rain' is no fault"),
        ({"cpus-guest": "4096"}, "here: "),
    ],
)
def test_what_cannot_be_is_told_with_the_case(values: Values, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        make_job({"memory": "64MiB", **values}, 1, "1s", "here")
    assert str(raised.value).startswith(said)


def test_links() -> None:
    assert isinstance(site_of({}), Loopback)
    assert isinstance(site_of({"link-rate": "1gbit"}), InLab)


def test_a_link_is_what_lab_means_by_it() -> None:
    job = job_of(link_rate="100mbit", delay="5ms", loss="1%")
    shape = link_of(job)
    assert (shape.rate_bps, shape.delay_s, shape.loss, shape.seed) == (100_000_000, 0.005, 0.01, 3)
    words = shlex.split(InLab().command(job, "1s"))
    assert words[:2] == ["pagefire", "lab"]
    said = LAB.make_context("lab", words[2:]).params
    assert shape_of(*(said[name] for name in LINK_NAMES), said["link_seed"]) == shape
    assert said["warmup"] == "1s"


def test_what_cannot_be_a_link_is_told_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="a fault cannot be made on a shaped link"):
        InLab().require_possible(job_of(delay="5ms", fault="link cut, after the resume", mode="postcopy"))
    with pytest.raises(UsageError, match="jitter without a delay"):
        InLab().require_possible(job_of(jitter="5ms"))


def test_faults() -> None:
    assert parse_fault("none") is None
    for kind in KINDS:
        for moment in MOMENTS:
            assert parse_fault(f"{kind}, {moment}") == Fault(kind, moment)


def test_what_has_no_line_of_demo_is_repeated_by_its_key() -> None:
    (task,) = tasks_of(parse_scenario("[options]\nfault = 'link cut, after the resume'", "f", "f.toml"))
    work = Work(task, "f", "f.toml", True, "1s", 0)
    words = shlex.split(work.command(work.job(), Loopback()))
    assert words[:6] == ["pagefire", "experiment", "run", "f.toml", "--only", task.key]
    assert words[-1] == "--quick"


def verified(**changed: Any) -> Any:
    return {"verified": {"problems": [], "commits_lost": 0, "commits_repeated": 0, "invariant": True, **changed}}


def test_outcomes() -> None:
    from pagefire.protocol.errors import Cancelled

    assert outcome_of(Ran(verified())) == ("completed", None)
    assert outcome_of(Ran(verified(commits_lost=2)))[0] == "failed"
    assert outcome_of(Ran(verified(invariant=False)))[0] == "failed"
    assert outcome_of(Ran(verified(problems=["p"])))[1] == {
        "what": "the guest is not what it was", "why": "p", "next": "keep the report: this is a defect of pagefire",
    }  # fmt: skip
    assert outcome_of(Ran(None, Cancelled("c", "w", "d"))) == ("cancelled", {"what": "c", "why": "w", "next": "d"})
    assert outcome_of(Ran(None, PagefireError("f")))[0] == "failed"
    # What a fault did to the guest shows when it migrates again.
    assert outcome_of(Ran(verified(), None, verified(commits_repeated=1)))[0] == "failed"
