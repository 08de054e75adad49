"""The machine, its files and its terminal."""
