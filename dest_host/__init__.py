"""The destination daemon: receives pages, takes the guest over at the commit point, serves its faults until none is missing."""
