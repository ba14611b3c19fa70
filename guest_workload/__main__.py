"""python -m pagefire.guest_workload: the guest process. A host starts it; see `guest_process`."""

from pagefire.guest_workload.process import main

main()
