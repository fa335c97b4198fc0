"""Pictures as bytes: sniffing, decoding, mending, converting, fitting. Bytes in, bytes out."""
