"""Networks and training states on disk."""
