"""A lab on one machine: two hosts and the wire between them, in three network namespaces.

shape.py says what the wire is to do, tc_requests.py and line.py do it (the kernel's netem, or an emulator of ours where there is
none), keeper.py holds the namespaces, measurement.py finds out whether the wire does what was asked, and run.py migrates a guest
over it. Nothing outside the three namespaces is touched, and nothing of them is left, whatever happens.
"""
