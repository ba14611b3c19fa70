"""The built-in workloads, one idea a file. `registry` finds them by name."""
