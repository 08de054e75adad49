"""The search for augmentation policies."""
