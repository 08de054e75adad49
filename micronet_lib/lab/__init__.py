"""Experiments: data, recipes, measuring, records. Imports the methods, never the plots."""
