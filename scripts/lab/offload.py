"""Segmentation offloads of an interface, off or on: `ethtool -K` without ethtool, by its ioctl (ethtool(8), SIOCETHTOOL).

With them on, a link sees segments of up to 64 KiB that are no packets. `python -m pagefire.scripts.lab.offload INTERFACE gro off`.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import sys

_SIOCETHTOOL = 0x8946
#: ETHTOOL_STSO, _SGSO and _SGRO.
_COMMANDS = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}


def switch(interface: str, offload: str, *, on: bool) -> None:
    """Switch one offload (tso, gso, gro) of an interface of this thread's namespace; raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        value = array.array("I", [_COMMANDS[offload], on])
        fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), value.buffer_info()[0]))


def packets_as_on_a_cable(interface: str) -> None:
    """Switch all of them off; raises OSError."""
    for offload in _COMMANDS:
        switch(interface, offload, on=False)


if __name__ == "__main__":
    switch(sys.argv[1], sys.argv[2], on=sys.argv[3] == "on")
