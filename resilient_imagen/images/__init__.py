"""Image processing on encoded bytes: sniff, decode, normalize, convert and fit images."""
