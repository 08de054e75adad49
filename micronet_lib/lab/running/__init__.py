"""From a recipe to a record: order, plan, engines."""

from micronet_lib.lab.running.measure import ensure, run_curves, trained
from micronet_lib.lab.running.plan import images_seen
from micronet_lib.lab.running.requirements import begin

__all__ = ["begin", "ensure", "images_seen", "run_curves", "trained"]
