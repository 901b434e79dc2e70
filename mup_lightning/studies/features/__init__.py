"""Feature norms of trained runs, over depth and time."""
