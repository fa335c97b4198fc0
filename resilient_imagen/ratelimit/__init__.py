"""Rate limiting: requests in flight and images per minute, first in, first out."""
