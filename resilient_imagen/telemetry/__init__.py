"""Who is told what happened: events, and the sinks that turn them into spans and log lines."""
