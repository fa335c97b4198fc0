"""The circuit breaker: pybreaker as the state machine, an asyncio-correct gate around it."""
