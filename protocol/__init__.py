"""What two hosts say to each other, without saying it: pure values, codecs and state machines.

Nothing in here opens a socket, maps memory, reads a clock or starts a task. The wire format is specified in README.md beside
this file.
"""
