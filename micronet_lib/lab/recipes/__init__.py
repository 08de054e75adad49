"""Recipes, profiles and sweeps: what is measured."""
