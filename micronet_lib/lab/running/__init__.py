"""From a recipe to a record: order, plan, engines."""

from micronet_lib.lab.running.measure import ensure, trained

__all__ = ["ensure", "trained"]
