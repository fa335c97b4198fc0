"""Record, replay, sweep and report: tune thresholds from what really happened."""
