"""The shells around the pure protocol: sockets, the runtime directory, the local control socket, a daemon's life.

No decision about a migration is made here.
"""
