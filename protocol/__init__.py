"""What two hosts say to each other, without saying it: pure values, codecs and state machines.

Nothing in the modules of this package opens a socket, maps memory, reads a clock or starts a task; a test walks their imports.
The wire format is specified in README.md beside this file. The one subpackage, `transport`, holds the thin shells that do the
input and output for both daemons and the command line, beside the core that they drive, because the two hosts may not import
each other and neither may own what both need.
"""
