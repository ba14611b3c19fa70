"""Both roles of one migration, explored exhaustively: every state that two hosts, their links and their crashes can get into.

    world.py         what a state is: two hosts, the links between them, what the adversary may still do
    core.py          the product's own code at work in it: Ownership, Connection, Ledger, the bitmap's codec
    script.py        how the scripts of both sides speak and listen
    source.py        what the source's scripts do, step by step, each named by the function that it stands for; departure.py: after
                     the commit point
    destination.py   the same of the destination; arrival.py: after the resume, reception.py: its daemon
    search.py        the walk: every step from every state, the shortest way to each
    invariants.py    what holds in each state, and what each state leads to
    broken.py        worlds in which one thing is wrong, each of which has to be caught; broken_scripts.py: the wrong steps

Modelled are the scripts, in small steps that may be cut anywhere; decided is by the product's rules. Times do not exist: whatever
may happen at some time may happen at any time at which it is possible.
"""
