"""The Linux interfaces that this project uses: structures, numbers with size assertions, one function per call, no policy."""
