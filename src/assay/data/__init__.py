"""Tasks and their splits, data sources, and responses on disk."""
