"""Networks below the winning score (chapter 11)."""
