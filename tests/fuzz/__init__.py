"""Hostile bytes for everything that reads what a peer sent: the targets, what feeds them, and the inputs that are kept.

Each of `frame_decoder`, `message_bodies`, `bitmap_forms`, `conversations`, `switchover_payload` and `compressed_pages` is a target:
`one_input(given)` makes one case of any bytes, and raises AssertionError, or whatever the core raised, where a promise of the
protocol is broken; `seeds()` are the cases that are known beforehand. `make test` replays `corpus/` and thousands of mutations of
it; `make fuzz` is guided by coverage.

Inputs are decisions, not frames (`choices.py`): the frames are built by the code under test. So a change of the wire format leaves
the corpus of use, and mutations get past lengths, checksums and phases. `make fuzz ARGS=--regenerate` makes the corpus anew.
"""
