"""Reference images: loaded from wherever the caller has them, mended, made small enough to send."""
