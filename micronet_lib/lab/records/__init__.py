"""Records and the tables made of them."""

from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.records.record import Record, promote, read, read_sweep, record_path, write
from micronet_lib.lab.records.statistics import gain, runs
from micronet_lib.lab.records.status import coverage, machines
from micronet_lib.lab.records.tables import (
    NOT_RUN,
    arrays,
    bill,
    compare,
    curves,
    measured,
    paper,
    paper_wide,
    provenance,
    table,
)

__all__ = [
    "NOT_RUN",
    "Record",
    "arrays",
    "bill",
    "compare",
    "coverage",
    "curves",
    "gain",
    "machines",
    "measured",
    "paper",
    "paper_wide",
    "promote",
    "provenance",
    "read",
    "read_sweep",
    "recipe_id",
    "record_path",
    "runs",
    "table",
    "write",
]
