"""Pictures as bytes: sniffing, decoding, loading, mending, fitting. Bytes in, bytes out."""
