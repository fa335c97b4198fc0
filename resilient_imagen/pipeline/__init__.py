"""The call pipeline: deadline, routes, retries, pace, circuit breaker, one request."""
