"""Records and the tables made of them."""

from micronet_lib.lab.recipes.identity import recipe_id
from micronet_lib.lab.records.comparison import (
    EXPECTED,
    OUTSIDE,
    compared,
    comparison_text,
    profiles_of_records,
    remarks,
    side_by_side,
)
from micronet_lib.lab.records.record import (
    Record,
    diverged,
    failures,
    promote,
    read,
    read_sweep,
    record_path,
    write,
)
from micronet_lib.lab.records.statistics import detectable, gain, runs
from micronet_lib.lab.records.status import coverage, machines
from micronet_lib.lab.records.tables import (
    NOT_RUN,
    arrays,
    bill,
    compare,
    curves,
    measured,
    mine,
    paper,
    paper_wide,
    printed_rows,
    provenance,
    table,
)

__all__ = [
    "EXPECTED",
    "NOT_RUN",
    "OUTSIDE",
    "Record",
    "arrays",
    "bill",
    "compare",
    "compared",
    "comparison_text",
    "coverage",
    "curves",
    "detectable",
    "diverged",
    "failures",
    "gain",
    "machines",
    "measured",
    "mine",
    "paper",
    "paper_wide",
    "printed_rows",
    "profiles_of_records",
    "promote",
    "provenance",
    "read",
    "read_sweep",
    "recipe_id",
    "record_path",
    "remarks",
    "runs",
    "side_by_side",
    "table",
    "write",
]
