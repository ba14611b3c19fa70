"""The guest: its process, memory, vCPUs and workloads, and the handle by which a host holds it. No network.

Importing this package or what a host needs of it (`control_block`, `guest_process`, `linux`) does not import Numba: only the
guest process compiles.
"""
