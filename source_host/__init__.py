"""The source daemon: owns the guest until the commit point, tracks its writes, streams its pages, hands it over."""
