"""`pagefire bench`: every figure beside a reference taken in the same run, in turn, with median and spread.

One file a benchmark: throughput, stun, cpu, brownout, faults, memory, compression, deltas; each measures, prints a table and draws
a picture. suite.py lists and runs them, README.md says what each counts. What they share: pairs.py (in turn), ballast.py (free
memory), shuttle.py (one guest, back and forth between two daemons), full_round.py, process_figures.py, plot.py, and a guest of its
own, text_workload.py. The references: copier.py, bare_handover.py, stand_in.py, bare_fetch.py.
"""
