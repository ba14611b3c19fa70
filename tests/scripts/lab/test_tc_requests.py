"""A shape as netlink requests. The golden bytes are what tc (iproute2 6.1) sends for the line beside them, read with strace."""

from __future__ import annotations

import struct

import pytest

from pagefire.scripts.lab.shape import LinkShape, parse_netem
from pagefire.scripts.lab.tc_requests import (
    NETEM_CLASS,
    NETEM_HANDLE,
    NORMAL_SCALE,
    TBF_HANDLE,
    TC_H_ROOT,
    normal_table,
    requests,
)

#: The seed's attribute, which tc of that version does not send: kind 14, eight bytes.
SEED = bytes.fromhex("0c000e000100000000000000")
NETEM = {
    "limit 100000 delay 25ms 1ms 25% loss 0.1%": (
        "e1f50500 a0860100 37894100 00000000 00000000 093d0000  10000100 00000040 00000000 00000000"
    ),
    "delay 75ms reorder 25% 50% gap 5 duplicate 1% corrupt 0.1% limit 4000": (
        "a3e11100 a00f0000 00000000 05000000 295c8f02 00000000  10000100 00000000 00000000 00000000"
        "0c000300 00000040 00000080  0c000400 37894100 00000000"
    ),
    "delay 25ms loss random 0.1% 25% limit 5": (
        "e1f50500 05000000 37894100 00000000 00000000 00000000  10000100 00000000 00000040 00000000"
    ),
    "limit 1000 delay 300us": "4f120000 e8030000 00000000 00000000 00000000 00000000",
}


@pytest.mark.parametrize("line", NETEM)
def test_netem_is_what_tc_sends(line: str) -> None:
    (qdisc,) = requests(parse_netem(line))
    assert (qdisc.kind, qdisc.parent, qdisc.handle) == ("netem", TC_H_ROOT, NETEM_HANDLE)
    assert qdisc.options == bytes.fromhex(NETEM[line]) + SEED


def test_tbf_is_what_tc_sends_without_its_table_of_times() -> None:
    """`tbf rate 200000000bit burst 25000 limit 1250000`."""
    (qdisc,) = requests(LinkShape(rate_bps=200_000_000))
    assert (qdisc.kind, qdisc.parent, qdisc.handle) == ("tbf", TC_H_ROOT, TBF_HANDLE)
    assert qdisc.words == "rate 200000000bit burst 25000 limit 250000"
    parms = "2800010003010000ffff000040787d01" + 12 * "00" + "90d00300093d000000000000"
    assert qdisc.options == bytes.fromhex(parms + "08000600a8610000")


def test_a_rate_that_32_bits_do_not_hold_has_an_attribute_of_its_own() -> None:
    """`tbf rate 40000000000bit burst 5000000 limit 50000000`."""
    (qdisc,) = requests(LinkShape(rate_bps=40_000_000_000))
    parms = "2800010003010000ffff0000ffffffff" + 12 * "00" + "80f0fa020b47000000000000"
    assert qdisc.options == bytes.fromhex(parms + "08000600404b4c00" + "0c00040000f2052a01000000")


def test_a_delay_and_a_rate_are_netem_with_tbf_below() -> None:
    shape = LinkShape(delay_s=0.025, loss=0.001, rate_bps=200_000_000)
    netem, tbf = requests(shape)
    assert (netem.parent, netem.handle, tbf.parent) == (TC_H_ROOT, NETEM_HANDLE, NETEM_CLASS)
    assert [one.line("veth0") for one in (netem, tbf)] == [
        f"qdisc add dev veth0 root handle 1: netem limit {shape.held_packets} delay 25ms loss 0.1%",
        "qdisc add dev veth0 parent 1:1 handle 2: tbf rate 200000000bit burst 25000 limit 1250000",
    ]


def test_nothing_is_asked_of_the_kernel_for_a_link_that_is_not_shaped() -> None:
    assert requests(LinkShape()) == []


def test_a_normal_distribution_is_a_table_of_its_own() -> None:
    (qdisc,) = requests(parse_netem("delay 100ms 20ms distribution normal"))
    size, kind = struct.unpack_from("=HH", qdisc.options, 24)
    assert (size, kind) == (4 + 2 * 4096, 2)
    table = struct.unpack_from("=4096h", qdisc.options, 28)
    assert list(table) == normal_table() == sorted(table)
    assert sum(table) == 0
    # Of a standard deviation of one, but for the ends that are cut off.
    assert sum(value**2 for value in table) / 4096 == pytest.approx(NORMAL_SCALE**2, rel=0.01)
    assert qdisc.words.endswith("delay 100ms 20ms distribution normal")


@pytest.mark.parametrize("line", NETEM)
def test_what_is_printed_for_tc_means_the_same(line: str) -> None:
    shape = parse_netem(line)
    assert parse_netem(requests(shape)[0].words) == LinkShape(
        **{field: getattr(shape, field) for field in shape.__slots__} | {"limit_packets": shape.held_packets}
    )
