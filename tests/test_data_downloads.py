"""Downloads from a server on this machine, and what is made of them."""

import hashlib
import io
import json
import os
import sys
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pooch
import pytest
import requests
from torchvision.datasets import CIFAR100

from micronet_lib.errors import InputError
from micronet_lib.lab.data import downloads
from micronet_lib.lab.data.downloads import (
    ASSETS,
    GROUPS,
    Asset,
    NotFetchedError,
    check,
    convert_policies,
    extract,
    fetch,
    file_status,
)

REAL_DATA = os.environ.get("MICRONET_DATA")
DEAD = "http://127.0.0.1:1"  # nothing listens there
PAYLOAD = bytes(range(256)) * 400
SET = {"set/train": b"train " * 1000, "set/meta": b"meta"}


class Served(NamedTuple):
    folder: Path
    url: str

    def put(self, name: str, body: bytes) -> str:
        (self.folder / name).write_bytes(body)
        return f"{self.url}/{name}"


class Handler(SimpleHTTPRequestHandler):
    def copyfile(self, source, outputfile):
        body = source.read()
        outputfile.write(body[: len(body) // 2] if "cut" in self.path else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path_factory, monkeypatch):
    """A folder that a server on 127.0.0.1 gives out; of `cut*` it sends half."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "RETRIES", 0)
    folder = tmp_path_factory.mktemp("served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Served(folder, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def sha256(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def single(*urls: str, name: str = "net.t7", group: str = "kaist") -> Asset:
    return Asset(group, f"kaist/{name}", urls, {f"kaist/{name}": sha256(PAYLOAD)})


def packed(*urls: str) -> Asset:
    files = {name: sha256(body) for name, body in SET.items()}
    return Asset("cifar100", "set.tar.gz", urls, files, partial(extract, paths=files))


def tar_gz(members: dict[str, bytes | str]) -> bytes:
    """Pack files; text instead of bytes makes a link to there."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(body, str):
                info.type, info.linkname = tarfile.SYMTYPE, body
                tar.addfile(info)
            else:
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


# ------------------------------------------------------------------------------------- one file


def test_a_file_is_fetched_once(served, tmp_path):
    root = tmp_path / "new" / "root"
    asset = single(served.put("net.t7", PAYLOAD))
    path, digest = root / "kaist/net.t7", sha256(PAYLOAD)
    assert check(root, [asset]) == {"kaist/net.t7": "missing"}
    assert fetch(["kaist"], root, [asset]) == {"kaist/net.t7": "fetched"}
    assert path.read_bytes() == PAYLOAD
    assert path.stat().st_mode & 0o044 == 0o044, "others may read it"
    (served.folder / "net.t7").unlink()
    assert fetch(None, root, [asset]) == {"kaist/net.t7": "present"}
    assert check(root, [asset]) == {"kaist/net.t7": "ok"}
    assert file_status(path, f"md5:{hashlib.md5(PAYLOAD).hexdigest()}") == "ok"
    assert file_status(path, sha256(b"")) == "wrong digest"
    assert file_status(path / "below", digest) == "missing"
    assert file_status(root, digest) == "unreadable"


def test_a_damaged_file_and_what_a_kill_left_are_replaced(served, tmp_path):
    asset = single(served.put("net.t7", PAYLOAD))
    for path in ("kaist/net.t7", "fetch.part/kaist/net.t7"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(PAYLOAD[:-1])
    assert fetch(None, tmp_path, [asset]) == {"kaist/net.t7": "fetched"}
    assert (tmp_path / "kaist/net.t7").read_bytes() == PAYLOAD
    assert below(tmp_path) == {"kaist/net.t7"}


@pytest.mark.parametrize("bad", ["absent", "cut", "wrong", "silent"])
def test_the_second_source_is_asked_when_the_first_fails(served, tmp_path, bad):
    served.put("cut", PAYLOAD)
    served.put("wrong", PAYLOAD[::-1])
    first = f"{DEAD if bad == 'silent' else served.url}/{bad}"
    with pytest.raises(NotFetchedError):
        fetch(None, tmp_path, [single(first)])
    assert below(tmp_path) == set(), "nothing that could be taken for the file"
    assert fetch(None, tmp_path, [single(first, served.put("right", PAYLOAD))])
    assert (tmp_path / "kaist/net.t7").read_bytes() == PAYLOAD


def test_a_failure_names_the_place_and_does_not_stop_the_others(served, tmp_path):
    assets = [
        single(f"{served.url}/absent", DEAD, name="a"),
        single(served.put("b", PAYLOAD), name="b"),
        single(DEAD, name="c"),
    ]
    with pytest.raises(NotFetchedError) as caught:
        fetch(None, tmp_path, assets)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path / "kaist/a"), f"{served.url}/absent", "404", DEAD, "kaist/c"):
        assert part in message
    assert below(tmp_path) == {"kaist/b"}


def test_a_host_that_does_not_answer_is_asked_once(tmp_path, monkeypatch):
    asked = []

    def no_answer(self, url, output_file, pooch):
        asked.append(url)
        raise requests.exceptions.ConnectTimeout

    monkeypatch.setattr(downloads, "RETRIES", 0)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", no_answer)
    with pytest.raises(NotFetchedError):
        fetch(None, tmp_path, [single(f"{DEAD}/{name}", name=name) for name in "ab"])
    assert asked == [f"{DEAD}/a"]


def test_an_interrupt_leaves_nothing(served, tmp_path, monkeypatch):
    def interrupted(self, url, output_file, pooch):
        Path(output_file).write_bytes(PAYLOAD[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(None, tmp_path, [single(DEAD)])
    assert below(tmp_path) == set()


def test_groups_and_one_fetch_at_a_time(served, tmp_path):
    url = served.put("net.t7", PAYLOAD)
    assets = [single(url, name="a"), single(url, name="b", group="policies")]
    with downloads._locked(tmp_path), pytest.raises(InputError, match="another fetch"):
        fetch(None, tmp_path, assets)
    with pytest.raises(InputError, match=", ".join(GROUPS)):
        fetch(["kaist", "imagenet"], tmp_path, assets)
    assert list(fetch(["policies"], tmp_path, assets)) == ["kaist/b"]
    assert below(tmp_path) == {"kaist/b"}


def test_without_pooch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(InputError, match="pip install pooch"):
        fetch(None, tmp_path, [single(DEAD)])
    (tmp_path / "set.tar.gz").write_bytes(tar_gz(SET))
    assert set(fetch(None, tmp_path, [packed(DEAD)]).values()) == {"fetched"}
    assert below(tmp_path) == {"set.tar.gz", *SET}, "what was placed by hand stays"


# ------------------------------------------------------------------------------------- archives


def test_an_archive_is_read_by_the_first_python_3_11(served, tmp_path, monkeypatch):
    """Before 3.11.4, as on Debian 12, `tarfile` extracts without a filter."""

    def extract(self, member, path="", set_attrs=True, *, numeric_owner=False):
        raise AssertionError("filter is not known")

    monkeypatch.setattr(tarfile.TarFile, "extract", extract)
    monkeypatch.setattr(tarfile.TarFile, "extractall", extract)
    asset = packed(served.put("set.tar.gz", tar_gz(SET)))
    assert set(fetch(None, tmp_path, [asset]).values()) == {"fetched"}
    assert below(tmp_path) == set(SET)


def test_of_an_archive_only_the_wanted_files_are_taken(served, tmp_path):
    root = tmp_path / "a" / "root"
    evil = {"../../evil": b"evil", str(tmp_path / "evil"): b"evil", "set/link": "/etc"}
    wanted = {f"./{name}": body for name, body in SET.items()}
    fetch(None, root, [packed(served.put("set", tar_gz(evil | wanted | {"set/more": b""})))])
    assert below(tmp_path) == {f"a/root/{name}" for name in SET}
    assert {name: (root / name).read_bytes() for name in SET} == SET


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"<html>moved</html>",
        tar_gz(SET)[:-40],
        tar_gz(SET)[:20] + bytes(20) + tar_gz(SET)[40:],
        tar_gz({"set/train": SET["set/train"]}),
        tar_gz(SET | {"set/meta": b"other"}),
        tar_gz(SET | {"set/meta": "/etc/hostname"}),
    ],
    ids=["empty", "page", "cut", "damaged", "lacking", "other", "link"],
)
def test_a_bad_archive_changes_nothing_and_the_next_is_asked(served, tmp_path, bad):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").write_bytes(SET["set/train"])
    inode = (tmp_path / "set/train").stat().st_ino
    bad_url = served.put("bad", bad)
    with pytest.raises(NotFetchedError):
        fetch(None, tmp_path, [packed(bad_url)])
    assert below(tmp_path) == {"set/train"}
    outcomes = fetch(None, tmp_path, [packed(bad_url, served.put("good", tar_gz(SET)))])
    assert outcomes == {"set/train": "present", "set/meta": "fetched"}
    assert (tmp_path / "set/train").stat().st_ino == inode, "a right file is left alone"


# ------------------------------------------------------------------------------------- policies


def as_source(policies: dict) -> str:
    return "\n\n".join(
        f"def {k}():\n    p = {json.dumps(v)}\n    return p" for k, v in policies.items()
    )


PAIR = '[["Cutout", 0.1, 0.2], ["Color", 0.3, 0.4]]'
REFUSED = ("p = list(open('ran', 'w'))", f"p = [{PAIR}, open('ran', 'w')]", "p = [\n")


def test_a_policy_source_is_read_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    source = tmp_path / "source.py"
    good = f"def a():\n    p = [{PAIR}]\n    return p"
    for text in (
        *(f"def a():\n    {statement}\n    return p" for statement in REFUSED),
        f"open('ran', 'w')\n{good}",
        good.replace("    p =", "    open('ran', 'w')\n    p ="),
        "\0",
    ):
        source.write_text(text)
        with pytest.raises(InputError):
            convert_policies(source, tmp_path / "made")
    assert below(tmp_path) == {"source.py"}


def test_policies_that_differ_in_a_number_are_refused(served, tmp_path):
    asset = next(asset for asset in ASSETS if asset.group == "policies")
    url = served.put("source.py", f"def a():\n    p = [{PAIR}]\n    return p".encode())
    with pytest.raises(NotFetchedError, match="wrong digest"):
        fetch(None, tmp_path, [replace(asset, urls=(url,))])
    assert below(tmp_path) == set()


def test_policy_sets_keep_names_order_and_values(tmp_path):
    policies = {"set_b": [json.loads(PAIR)], "set_a": [[["Rotate", 0.75, 0.125]] * 2] * 2}
    (tmp_path / "source.py").write_text(as_source(policies))
    convert_policies(tmp_path / "source.py", tmp_path)
    made = json.loads((tmp_path / downloads.POLICIES_FILE).read_bytes())
    assert list(made.items()) == list(policies.items())


def test_the_policies_come_from_the_published_source(tmp_path):
    published = Path(REAL_DATA or "") / downloads.POLICIES_FILE
    if not published.is_file():
        pytest.skip("needs the policies in MICRONET_DATA")
    asset = next(asset for asset in ASSETS if asset.group == "policies")
    # The published source is regular enough to be rebuilt from what was made of it.
    placed = tmp_path / asset.path
    placed.parent.mkdir()
    placed.write_text(as_source(json.loads(published.read_bytes())), encoding="utf-8")
    assert fetch(["policies"], tmp_path) == {downloads.POLICIES_FILE: "fetched"}
    assert (tmp_path / downloads.POLICIES_FILE).read_bytes() == published.read_bytes()


# ----------------------------------------------------------------------------- the list of files


def test_assets_have_digests_and_two_sources_and_stay_below_the_root():
    assert {asset.group for asset in ASSETS} == set(GROUPS)
    assert len({asset.path for asset in ASSETS}) == len(ASSETS)
    for asset in ASSETS:
        assert len(set(asset.urls)) >= 2
        assert all(url.startswith("https://") for url in asset.urls)
        assert len({Path(url).name for url in asset.urls}) == 1
        for digest in asset.files.values():
            algorithm, _, digits = digest.partition(":")
            assert len(bytes.fromhex(digits)) == hashlib.new(algorithm).digest_size
        for path in (asset.path, *asset.files):
            assert not Path(path).is_absolute()
            assert ".." not in path


def test_cifar100_is_what_torchvision_expects():
    (asset,) = (asset for asset in ASSETS if asset.group == "cifar100")
    assert asset.urls[0] == CIFAR100.url
    assert asset.path == CIFAR100.filename
    meta = [CIFAR100.meta["filename"], CIFAR100.meta["md5"]]
    assert asset.files == {
        f"{CIFAR100.base_folder}/{name}": f"md5:{md5}"
        for name, md5 in [*CIFAR100.train_list, *CIFAR100.test_list, meta]
    }


@pytest.mark.skipif(REAL_DATA is None, reason="needs MICRONET_DATA")
def test_real_files_have_the_pinned_digests():
    statuses = set(check(Path(REAL_DATA)).values())
    assert "ok" in statuses
    assert statuses <= {"ok", "missing"}
