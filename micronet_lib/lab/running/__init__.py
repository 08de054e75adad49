"""From a recipe to a record: order, plan, engines."""

from micronet_lib.lab.running.measure import ensure, trained
from micronet_lib.lab.running.requirements import begin

__all__ = ["begin", "ensure", "trained"]
