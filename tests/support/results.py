"""Lines of results.jsonl and an experiment.json as an experiment writes them, with made figures: for what only reads them."""

from __future__ import annotations

from typing import Any

from pagefire.scripts.experiment.runner import experiment_of
from pagefire.scripts.experiment.scenario import parse_scenario
from pagefire.scripts.experiment.sweep import Task, tasks_of

Json = dict[str, Any]

#: One figure of each kind.
SCENARIO = """
title = "Modes <and> rates"
question = "Which & when?"
repetitions = 3
[guest]
memory = "64MiB"
[sweep]
mode = ["precopy", "hybrid"]
rate = ["1k/s", "20k/s", "400k/s"]
[[figure]]
kind = "lines"
x = "rate"
y = "stun"
by = "mode"
[[figure]]
kind = "bars"
x = "mode"
y = "total"
by = "rate"
[[figure]]
kind = "heatmap"
x = "mode"
by = "rate"
y = "stun"
[[figure]]
kind = "distribution"
y = "stun"
by = "mode"
[[figure]]
kind = "parts"
x = "mode"
[[figure]]
kind = "timeline"
where = { rate = "1k/s" }
[[figure]]
kind = "bars"
x = "mode"
y = "settled"
"""
BREAKDOWN = {
    "quiesce_s": 0.001, "final_scan_s": 0.002, "bitmap_s": 0.0005, "checkpoint_s": 0.0001, "drain_s": 0.002,
    "transfer_s": 0.001, "install_s": 0.0007, "verify_s": 0.0, "resume_s": 0.0004,
}  # fmt: skip


def line_of(task: Task, stun_s: float | None, outcome: str = "completed") -> Json:
    """Make a migration's line: a stun of 0.02 s from second 0.5 on, two seconds in all."""
    buckets = [
        {
            "t_s": round(index * 0.01 - 0.5, 2),
            "commits": 0 if index in (100, 101) else 90 + index % 7,
            "phase": "active",
        }
        for index in range(250)
    ]
    return {
        "key": task.key,
        "case": dict(task.case.values),
        "repetition": task.repetition,
        "seed": task.seed,
        "command": f"pagefire demo --mode {task.case.values['mode']}",
        "started_at": "2026-01-02T03:04:05+00:00",
        "took_s": 3.0,
        "machine": "here",
        "outcome": outcome,
        "error": None if outcome == "completed" else {"what": "does <not> converge", "why": "it writes", "next": ""},
        "fault": None,
        "report": {
            "outcome": outcome, "stun_s": stun_s, "stun_at_s": 0.5, "total_s": 2.0 + task.repetition, "downtime_s": stun_s,
            "downtime_breakdown": BREAKDOWN if outcome == "completed" else None, "timeline": buckets,
            "phases": [
                {"phase": "setup", "at_s": 0.0}, {"phase": "active", "at_s": 0.1}, {"phase": "device", "at_s": 0.5},
                {"phase": "postcopy-active", "at_s": 0.52}, {"phase": "completed", "at_s": 1.2},
            ],
        },
    }  # fmt: skip


def made_results(text: str = SCENARIO) -> tuple[Json, list[Json]]:
    """Give an experiment and its lines: stuns of 10 ms and more; 400k/s does not converge in pre-copy."""
    scenario = parse_scenario(text, "made", "made.toml")
    lines = []
    for task in tasks_of(scenario):
        lost = (task.case.values["mode"], task.case.values["rate"]) == ("precopy", "400k/s")
        lines.append(
            line_of(task, None if lost else 0.01 * (1 + task.repetition), "cancelled" if lost else "completed")
        )
    return experiment_of(scenario, "pagefire experiment run made.toml"), lines
