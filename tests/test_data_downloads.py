"""What is downloaded and what is made of it, from a server on this machine."""

import ast
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from micronet_lib.errors import InputError
from micronet_lib.lab.data import downloads
from micronet_lib.lab.data.downloads import (
    ASSETS,
    GROUPS,
    Asset,
    Outcome,
    check,
    fetch,
    read_policies,
)
from micronet_lib.lab.data.transfers import locked

PAYLOAD = os.urandom(10_000)
REAL_DATA = os.environ.get("MICRONET_DATA")

POLICY_SOURCE = """def set_a():
    p = [[["Cutout", 0.25, 0.5], ["ShearX", 0.0, 1.0]], [["Color", 0.1, 0.2], ["Invert", 1.0, 0.3]]]
    return p

def set_b():
    p = [[["Rotate", 0.75, 0.125], ["Rotate", 0.5, 0.5]]]
    return p"""
POLICY_SETS = {
    "set_a": [
        [["Cutout", 0.25, 0.5], ["ShearX", 0.0, 1.0]],
        [["Color", 0.1, 0.2], ["Invert", 1.0, 0.3]],
    ],
    "set_b": [[["Rotate", 0.75, 0.125], ["Rotate", 0.5, 0.5]]],
}


class Served(NamedTuple):
    """A folder that a server gives out, and the address of that server."""

    folder: Path
    root: str


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path_factory, monkeypatch):
    """A `Served` on 127.0.0.1."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path_factory.mktemp("served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Served(folder, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(served: Served, body: bytes = PAYLOAD, name: str = "net.t7", **changes) -> Asset:
    """Serve `body` and describe it as an asset."""
    (served.folder / name).write_bytes(body)
    urls = (f"{served.root}/{name}",)
    return replace(Asset("kaist", urls, f"kaist/{name}", sha256(body), "sha256"), **changes)


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def files_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_fetched_then_present(served, tmp_path):
    root = tmp_path / "new" / "root"
    asset = put(served)
    assert check(root, [asset]) == [Outcome("kaist/net.t7", "missing")]
    assert fetch(["kaist"], root, [asset]) == [Outcome("kaist/net.t7", "fetched")]
    assert (root / "kaist/net.t7").read_bytes() == PAYLOAD
    assert files_below(root) == {"kaist/net.t7"}
    (served.folder / "net.t7").unlink()  # so that asking for it again would fail
    assert fetch(None, root, [asset]) == [Outcome("kaist/net.t7", "present")]
    assert check(root, [asset]) == [Outcome("kaist/net.t7", "ok")]


def test_repository_under_its_other_name_is_asked_next(served, tmp_path):
    asset = put(served)
    moved = replace(asset, urls=(f"{served.root}/old/net.t7", *asset.urls))
    assert fetch(None, tmp_path, [moved]) == [Outcome("kaist/net.t7", "fetched")]
    assert (tmp_path / "kaist/net.t7").read_bytes() == PAYLOAD


def test_what_nobody_has_is_one_line_and_keeps_what_came_before(served, tmp_path):
    first, second = put(served, name="a"), put(served, name="b")
    (served.folder / "b").unlink()
    with pytest.raises(InputError, match="cannot download b from") as raised:
        fetch(None, tmp_path, [first, second])
    assert "\n" not in str(raised.value)
    assert files_below(tmp_path) == {"kaist/a"}


def test_damaged_file_is_told_and_replaced(served, tmp_path):
    asset = put(served)
    target = tmp_path / asset.path
    target.parent.mkdir()
    target.write_bytes(PAYLOAD[:-1])
    assert [o.status for o in check(tmp_path, [asset])] == ["wrong digest"]
    assert [o.status for o in fetch(None, tmp_path, [asset])] == ["fetched"]
    assert target.read_bytes() == PAYLOAD


def test_unknown_group_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="'imagenet'; choose from cifar100, kaist, policies"):
        fetch(["kaist", "imagenet"], tmp_path)


def test_only_the_named_groups_are_fetched(served, tmp_path):
    wanted = put(served, name="a", group="policies")
    other = put(served, name="b", group="kaist")
    assert [o.path for o in fetch(["policies"], tmp_path, [other, wanted])] == ["kaist/a"]
    assert files_below(tmp_path) == {"kaist/a"}


def test_second_fetch_into_the_same_folder_is_refused(served, tmp_path):
    asset = put(served)
    with locked(tmp_path), pytest.raises(InputError, match="another fetch"):
        fetch(None, tmp_path, [asset])
    assert [o.status for o in fetch(None, tmp_path, [asset])] == ["fetched"]


def test_file_where_the_root_should_be(served, tmp_path):
    root = tmp_path / "root"
    root.write_text("not a folder")
    asset = put(served)
    with pytest.raises(InputError, match="cannot write below") as raised:
        fetch(None, root, [asset])
    assert "MICRONET_DATA" in str(raised.value)
    assert [o.status for o in check(root, [asset])] == ["missing"]


READ_ONLY_SCRIPT = """
import os, sys
from pathlib import Path
from micronet_lib.errors import InputError
from micronet_lib.lab.data.downloads import Asset, fetch
root, url, digest = sys.argv[1:]
if os.access(root, os.W_OK):
    sys.exit(77)
try:
    fetch(None, Path(root), [Asset("kaist", (url,), "net.t7", digest, "sha256")])
except InputError as error:
    sys.exit(f"InputError: {error}")
"""


def forget_the_rights_of_root() -> None:
    """Let file modes bind root too, in a child process about to start (Linux)."""
    if os.geteuid() == 0 and sys.platform == "linux":
        import ctypes

        drop_from_bounding_set, override_file_modes = 24, 1
        ctypes.CDLL(None).prctl(drop_from_bounding_set, override_file_modes, 0, 0, 0)


def test_read_only_folder_is_one_line(served, tmp_path):
    asset = put(served)
    tmp_path.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY_SCRIPT, str(tmp_path), *asset.urls, asset.digest],
            preexec_fn=forget_the_rights_of_root,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        tmp_path.chmod(0o755)
    if done.returncode == 77:
        pytest.skip("file modes do not bind this user")
    assert done.returncode == 1
    assert done.stderr.startswith(f"InputError: cannot write below {tmp_path} (Permission denied)")
    assert done.stderr.count("\n") == 1


ARCHIVE_FILES = {"set/train": b"train " * 1000, "set/meta": b"meta"}


def put_archive(served: Served, members: dict[str, bytes]) -> Asset:
    return put(
        served,
        tar_gz(members),
        name="set.tar.gz",
        group="cifar100",
        path="set.tar.gz",
        files=tuple((name, sha256(body)) for name, body in ARCHIVE_FILES.items()),
        make=downloads.unpack,
    )


def test_archive_is_unpacked_and_checked_file_by_file(served, tmp_path):
    asset = put_archive(served, ARCHIVE_FILES)
    outcomes = fetch(["cifar100"], tmp_path, [asset])
    assert [(o.path, o.status) for o in outcomes] == [
        ("set/train", "fetched"),
        ("set/meta", "fetched"),
    ]
    assert files_below(tmp_path) == set(ARCHIVE_FILES), "the archive must not stay"
    (tmp_path / "set/notes.txt").write_text("mine")
    (tmp_path / "set/meta").write_bytes(b"damaged")
    assert [o.status for o in check(tmp_path, [asset])] == ["ok", "wrong digest"]
    assert [o.status for o in fetch(None, tmp_path, [asset])] == ["present", "fetched"]
    assert (tmp_path / "set/meta").read_bytes() == b"meta"
    assert (tmp_path / "set/notes.txt").read_text() == "mine"


def test_archive_placed_by_hand_is_used_and_kept(served, tmp_path):
    asset = put_archive(served, ARCHIVE_FILES)
    (served.folder / "set.tar.gz").rename(tmp_path / "set.tar.gz")
    fetch(None, tmp_path, [asset])
    assert files_below(tmp_path) == {"set.tar.gz", *ARCHIVE_FILES}


def test_archive_with_another_content_installs_nothing(served, tmp_path):
    asset = put_archive(served, ARCHIVE_FILES | {"set/meta": b"other"})
    with pytest.raises(InputError, match="set/meta made from"):
        fetch(None, tmp_path, [asset])
    assert not (tmp_path / "set").exists()


def test_archive_that_climbs_out_is_refused(served, tmp_path):
    root = tmp_path / "root"
    asset = put_archive(served, {"../../evil": b"evil", "../evil": b"evil"} | ARCHIVE_FILES)
    with pytest.raises(InputError, match=r"set\.tar\.gz is refused"):
        fetch(None, root, [asset])
    assert files_below(tmp_path) == {"root/set.tar.gz"}


def test_policies_become_json(served, tmp_path, monkeypatch):
    expected = json.dumps(POLICY_SETS, separators=(",", ":")).encode()
    asset = put(
        served,
        POLICY_SOURCE.encode(),
        name="fast_aug.py",
        group="policies",
        path="policies/fast_aug.py",
        files=((downloads.POLICIES_FILE[0], sha256(expected)),),
        make=downloads.convert_policies,
    )
    fetch(["policies"], tmp_path, [asset])
    assert files_below(tmp_path) == {downloads.POLICIES_FILE[0]}
    assert json.loads((tmp_path / downloads.POLICIES_FILE[0]).read_bytes()) == POLICY_SETS


PAIR = '[["Cutout", 0.1, 0.2], ["Color", 0.3, 0.4]]'


@pytest.mark.parametrize(
    "source",
    [
        "def a():\n    p = list(open('ran', 'w'))\n    return p",
        f"def a():\n    p = [{PAIR}, open('ran', 'w')]\n    return p",
        f"open('ran', 'w')\ndef a():\n    p = [{PAIR}]\n    return p",
        f"@open('ran', 'w')\ndef a():\n    p = [{PAIR}]\n    return p",
        f"def a():\n    open('ran', 'w')\n    p = [{PAIR}]\n    return p",
        f"def a():\n    p = [{PAIR}]\n    return q",
        f"def a():\n    p = {PAIR}\n    return p",
        f"def a():\n    p = [{PAIR.replace('0.4', '1.4')}]\n    return p",
        f"def a():\n    p = [{PAIR.replace('0.4', '-0.4')}]\n    return p",
        "def a():\n    p = [\n",
    ],
)
def test_policy_source_is_read_and_never_run(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the policy source is refused at line"):
        read_policies(source)
    assert files_below(tmp_path) == set()


def test_policy_sets_keep_names_order_and_values():
    read = read_policies(POLICY_SOURCE)
    assert read == POLICY_SETS
    assert list(read) == list(POLICY_SETS)


def test_assets_are_pinned_and_stay_below_the_root():
    assert {asset.group for asset in ASSETS} == set(GROUPS)
    lengths = {"md5": 32, "sha256": 64}
    paths = [asset.path for asset in ASSETS]
    for asset in ASSETS:
        assert asset.urls
        assert all(url.startswith("https://") for url in asset.urls)
        for path, digest in ((asset.path, asset.digest), *asset.expected):
            assert len(digest) == lengths[asset.algorithm]
            assert not Path(path).is_absolute()
            assert ".." not in path
    assert len(set(paths)) == len(paths)


def test_kaist_files_are_asked_for_under_the_name_in_the_paper_first():
    for asset in (asset for asset in ASSETS if asset.group != "cifar100"):
        owner_and_name = ["/".join(url.split("/")[3:5]) for url in asset.urls]
        assert owner_and_name == [
            "Kthyeon/micronet_neurips_challenge",
            "Kthyeon/KAIST-AI-NeurIPS2019-MicroNet-2nd-place-solution",
        ]
        rest = {url.split("/", maxsplit=5)[5] for url in asset.urls}
        assert len(rest) == 1, "commit and path are the same under both names"
        assert rest.pop().endswith(f"/{Path(asset.path).name}")


def test_cifar100_is_what_torchvision_expects():
    # Read, not imported: that would take longer than all other tests of this file together.
    package = Path(find_spec("torchvision").origin).parent
    module = ast.parse((package / "datasets" / "cifar.py").read_text(encoding="utf-8"))
    (their_class,) = (
        node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "CIFAR100"
    )
    theirs = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in their_class.body
        if isinstance(node, ast.Assign)
    }
    (ours,) = (asset for asset in ASSETS if asset.group == "cifar100")
    assert ours.urls == (theirs["url"],)
    assert (ours.path, ours.digest) == (theirs["filename"], theirs["tgz_md5"])
    meta = (theirs["meta"]["filename"], theirs["meta"]["md5"])
    assert ours.files == tuple(
        (f"{theirs['base_folder']}/{name}", md5)
        for name, md5 in [*theirs["train_list"], *theirs["test_list"], meta]
    )


@pytest.mark.skipif(REAL_DATA is None, reason="needs MICRONET_DATA")
def test_real_files_have_the_pinned_digests():
    outcomes = check(Path(REAL_DATA))
    assert {o.status for o in outcomes} <= {"ok", "missing"}
    assert any(o.status == "ok" for o in outcomes)


def test_real_policies_come_from_the_pinned_source(tmp_path):
    path = Path(REAL_DATA or "") / downloads.POLICIES_FILE[0]
    if not path.is_file():
        pytest.skip("needs the policies in MICRONET_DATA")
    sets = json.loads(path.read_bytes())
    # The published file is regular enough to be rebuilt from the JSON, digest included.
    source = "\n\n".join(
        f"def {name}():\n    p = {json.dumps(policies)}\n    return p"
        for name, policies in sets.items()
    )
    asset = next(asset for asset in ASSETS if asset.group == "policies")
    placed = tmp_path / asset.path
    placed.parent.mkdir()
    placed.write_text(source, encoding="utf-8")
    assert sha256(placed.read_bytes()) == asset.digest
    outcomes = fetch(["policies"], tmp_path)
    assert [o.status for o in outcomes] == ["fetched"]
    assert (tmp_path / downloads.POLICIES_FILE[0]).read_bytes() == path.read_bytes()
