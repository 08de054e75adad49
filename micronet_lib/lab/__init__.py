"""Experiments: data, recipes, training, measuring, records. Imports methods, never plots."""
