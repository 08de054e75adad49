"""The status page's tables, from records made up here."""

from test_records_record import SWEEP, record

from micronet_lib.lab import records
from micronet_lib.lab.records import status
from micronet_lib.lab.records.tables import NOT_RUN


def test_status_counts_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MEASURED", tmp_path)
    monkeypatch.setattr(status, "SWEEPS", {"toy": SWEEP})
    for entry in (record(), record(seed=1), record("table1_3.0")):
        records.write(entry, tmp_path)
    found = status.status().set_index("profile")
    assert list(found.index) == ["quick", "full"]  # smoke proves nothing about accuracy
    quick, full = found.loc["quick"], found.loc["full"]
    assert (quick["points"], quick["measured"], quick["n"]) == (3, 2, "1/2")
    assert (quick["hardware"], quick["missing"]) == ("2 CPU threads", "micronet_v2")
    assert (full["points"], full["measured"], full["n"]) == (3, 0, "0")
    assert (full["hardware"], full["missing"]) == (NOT_RUN, NOT_RUN)


def test_machines_add_up_what_each_of_them_did(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MEASURED", tmp_path)
    monkeypatch.setattr(status, "SWEEPS", {"toy": SWEEP})
    here = {"device": "2 CPU threads", "torch": "2.15.0", "python": "3.11.7", "commit": "abc1234"}
    there = here | {"device": "1x H200"}
    for seed, env, date, wall_s in (
        (0, here, "2026-11-22T21:00:00Z", 1.5),
        (1, here, "2026-11-23T21:00:00Z", 2.5),
        (2, there, "2026-11-21T21:00:00Z", 9.0),
    ):
        run = record(seed=seed, env=env | {"date": date, "wall_s": wall_s})
        records.write(run, tmp_path)
    found = status.machines().set_index("device")
    assert found.loc["2 CPU threads", ["records", "seconds"]].tolist() == [2, 4.0]
    assert found.loc["2 CPU threads", "newest"] == "2026-11-23T21:00:00Z"
    assert found.loc["1x H200", ["records", "seconds", "commit"]].tolist() == [1, 9.0, "abc1234"]
