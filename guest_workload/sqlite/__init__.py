"""A real SQLite whose database is guest memory, driven by vCPUs without the GIL.

    functions    SQLite's own functions as addresses, for native code to call
    place        where in guest memory the database, its log and the log's index lie
    file_system  what SQLite takes for a file system (VFS): reads and writes are copies between its buffers and guest memory
    locks        what connections of one process lock against each other
    connection   one vCPU's connection: opened, its statements, what it does with them
    tables       what a new database holds
    transactions the load, after TPC-C: new order, payment, order status
    audit        what must hold of a database at every pause

Nothing of a database lies outside guest memory but locks and caches, which no transaction outlives: at the stun every vCPU stands
between two transactions, and the next host opens the database anew in the memory that has arrived.

Why so: three ways were looked at. A VFS of Python methods takes the GIL for every page, and a missing page would stop the whole
guest (trap 16). Deserializing into a buffer needs a buffer of one connection, which SQLite may move. So the VFS is native: SQLite
tells a loadable extension all of its functions, and accepts a table of ours for files. With its functions at hand a transaction
needs no Python either: it is a native step like that of every other workload, paused, throttled and measured by the same loop.
"""
