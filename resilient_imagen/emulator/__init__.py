"""A loopback server that speaks both vendors' APIs, with faults."""
