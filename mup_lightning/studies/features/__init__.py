"""Feature norms of trained runs."""
