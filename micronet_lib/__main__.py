"""The command line: `python -m micronet_lib VERB` or `micronet VERB`.

Results go to stdout, progress to stderr. With `--json` a verb prints exactly one JSON object. User
errors print one line on stderr and exit with status 2.
"""

from micronet_lib import interrupt  # isort: split

import argparse
import io
import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn

from micronet_lib.errors import InputError, check_choice, is_number

Result = dict[str, Any]
WATCH_S = 10
WIDTHS = "official rules only; of what has no widths of its own"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status.

    Args:
        argv: the words of the command; by default those of this process.
    """
    if argv is None:
        interrupt.handle()
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that knows ASCII only gets the result
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 1
    try:
        interrupt.may_interrupt()
        try:
            status = _run(words)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(interrupt.STOPPED, file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader closed the pipe, such as `head`
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        status = 141
    except SystemExit:  # --help
        status = 0
        raise
    finally:
        interrupt.all_is_said(status)
    return status


def _run(words: Sequence[str]) -> int:
    from micronet_lib.lab.host.places import check_library

    as_json = "--json" in words
    try:
        args = _parser().parse_args(words)
        as_json = args.json
        check_library(Path.cwd())
        verb: Callable[[argparse.Namespace], tuple[Result, str]] = args.verb
        result, text = verb(args)
    except InputError as error:
        return _fail(str(error), as_json)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", as_json)
    print(json.dumps(result, allow_nan=False) if as_json else text)
    return result.get("exit_status", 0)


def _fail(message: str, as_json: bool) -> int:
    line = " ".join(message.split())
    print(f"micronet: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": line}))
    return 2


def _lines(values: dict[str, Any]) -> str:
    width = max(len(key) for key in values)
    return "\n".join(f"{key:{width}}  {_shown(value)}" for key, value in values.items())


def _shown(value: Any) -> str:
    return f"{value:,.10g}".replace(",", " ") if is_number(value) else str(value)


def data_fetch(args: argparse.Namespace) -> tuple[Result, str]:
    """Download missing data."""
    from micronet_lib.lab.data.downloads import fetch
    from micronet_lib.lab.host.places import data_root

    return _outcomes(fetch(args.groups or None, data_root()))


def data_check(args: argparse.Namespace) -> tuple[Result, str]:
    """Verify the digests of downloaded files. Status 1 if one is missing or wrong."""
    from micronet_lib.lab.data.downloads import ASSETS, GROUPS, check
    from micronet_lib.lab.host.places import data_root

    for group in args.groups:
        check_choice("data group", group, GROUPS)
    asked = [asset for asset in ASSETS if asset.group in (args.groups or GROUPS)]
    result, text = _outcomes(check(data_root(), asked))
    good = all(row["status"] == "ok" for row in result["files"])
    return {**result, "exit_status": 0 if good else 1}, text


def _outcomes(statuses: dict[str, str]) -> tuple[Result, str]:
    rows = [{"path": path, "status": status} for path, status in statuses.items()]
    return {"files": rows}, "\n".join(f"{row['status']:12}  {row['path']}" for row in rows)


def data_picture(args: argparse.Namespace) -> tuple[Result, str]:
    """Write a picture of the embedded set: one row per superclass, ten images each."""
    from PIL import Image

    from micronet_lib.lab.data.embedded import contact_sheet, make_images

    images, targets = make_images("test", num_per_class=2)
    in_order = images[targets.argsort(kind="stable")]
    try:
        Image.fromarray(contact_sheet(in_order, columns=10)).save(args.file)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(
            f"cannot write a picture to {args.file} ({reason}): name a .png in a folder that is "
            "there and can be written"
        ) from error
    return {"file": str(args.file)}, str(args.file)


def evaluate(args: argparse.Namespace) -> tuple[Result, str]:
    """Rate a network file on a test set."""
    exchanged = args.checkpoint.suffix == ".onnx"
    if args.runtime is None:
        args.runtime = "openvino" if exchanged else "torch"
    check_choice("runtime", args.runtime, ("torch", "integer", "openvino"))
    if args.runtime == "integer":
        return _evaluate_integers(args)
    if args.runtime == "openvino":
        return _evaluate_openvino(args)
    from micronet_lib.early_exit import num_exits
    from micronet_lib.lab.data.images import load_split
    from micronet_lib.lab.storage.networks import load_network
    from micronet_lib.lab.training.evaluation import evaluate as rate_network

    model = load_network(args.checkpoint)
    found = rate_network(model, load_split(args.dataset, "test"), progress=True)
    result: Result = {"model": model.spec.name, "dataset": args.dataset}
    exits = num_exits(model)
    if exits > 1:  # at which threshold images leave is no part of a file
        result["rated"] = f"the last of {exits} exits"
    result |= found.metrics()
    return result, _lines(result)


def _evaluate_openvino(args: argparse.Namespace) -> tuple[Result, str]:
    """Rate an ONNX file, or what another file's network is as one, with OpenVINO."""
    from micronet_lib.lab.data.images import load_split
    from micronet_lib.lab.storage.exchange import SUFFIX, OpenVino, load_onnx, needed, onnx_bytes
    from micronet_lib.lab.storage.networks import load_network
    from micronet_lib.lab.training.evaluation import evaluate_openvino

    needed("openvino", "the runtime 'openvino'")
    if args.checkpoint.suffix == SUFFIX:
        network = load_onnx(args.checkpoint)
    else:
        network = OpenVino(onnx_bytes(load_network(args.checkpoint)), args.checkpoint)
    found = evaluate_openvino(network, load_split(args.dataset, "test"), progress=True)
    result = {"model": network.metadata["spec"]["name"], "dataset": args.dataset}
    result |= {"runtime": args.runtime, **found.metrics()}
    return result, _lines(result)


def _evaluate_integers(args: argparse.Namespace) -> tuple[Result, str]:
    """Rate a packed network with numpy, and say how wide its sums are."""
    from micronet_lib.beyond.integer import Accumulator, Machine
    from micronet_lib.beyond.packed import SUFFIX, load_packed
    from micronet_lib.lab.data.images import load_split
    from micronet_lib.lab.training.evaluation import evaluate_integers

    if args.checkpoint.suffix != SUFFIX:
        raise InputError(f"the runtime 'integer' reads packed networks, which end in {SUFFIX}")
    machine = Machine(load_packed(args.checkpoint))
    found = evaluate_integers(machine, load_split(args.dataset, "test"), progress=True)
    sums = [layer.sums for layer in machine.layers.values()]
    result = {
        "model": "integer_micronet",
        "dataset": args.dataset,
        "runtime": args.runtime,
        **found.metrics(),
        "accumulator_bits": max(each.bits for each in sums),
        "seen_accumulator_bits": max(
            Accumulator(each.smallest, each.largest).bits for each in sums
        ),
    }
    return result, _lines(result)


def score(args: argparse.Namespace) -> tuple[Result, str]:
    """Score a network under a rule set."""
    import torch

    from micronet_lib.architecture import build
    from micronet_lib.lab.host.given import assignments
    from micronet_lib.lab.storage.networks import load_network
    from micronet_lib.scoring.bill import score_network
    from micronet_lib.scoring.dead_channels import apply_savings
    from micronet_lib.scoring.rules import rules_of

    usual = "official" if args.network else "published"
    name = usual if args.rules is None else args.rules
    rules = rules_of(name, args.weight_bits, args.activation_bits, args.accumulator)
    torch.manual_seed(0)  # one fresh network in forty draws a weight of exactly zero
    if args.network:
        if args.save:
            raise InputError("--save is for MicroNets: give --model or --checkpoint")
        options = assignments(args.arg, "argument")
        model, name = _imported(args.network, options), args.network
    elif args.arg:
        raise InputError("--arg goes with --network")
    else:
        model = load_network(args.checkpoint) if args.checkpoint else build(args.model)
        model = apply_savings(model, args.save) if args.save else model
        name = model.spec.name
    try:
        with redirect_stdout(sys.stderr):
            found = score_network(model, rules, args.input or (3, 32, 32))
    except InputError:
        raise
    except Exception as error:
        if not (args.network or args.input):
            raise
        raise InputError(f"{name} on this input: {type(error).__name__}: {error}") from error
    macs = {"macs": found.macs, "dense_macs": found.dense_macs}
    macs = {key: int(value) if float(value).is_integer() else value for key, value in macs.items()}
    result = {"model": name, "rules": found.rules, **found.metrics(), **macs}
    text = _lines(result)
    if args.layers:
        table = found.table()
        result["layers"] = table.to_dict("records")
        text = f"{table.to_string(index=False)}\n{text}"
    return result, text


def _imported(name: str, options: dict[str, Any]) -> Any:
    """Return the network made by a callable that is given as `module:name`."""
    from importlib import import_module
    from operator import attrgetter

    from torch import nn

    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise InputError(f"{name!r} is not MODULE:NAME, such as torchvision.models:mobilenet_v2")
    sys.path.insert(0, str(Path.cwd()))  # the installed command does not look there
    try:
        with redirect_stdout(sys.stderr):  # whatever a constructor prints
            made = attrgetter(attribute)(import_module(module))(**options)
    except Exception as error:  # code of others may raise anything
        raise InputError(f"{name}: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{name} returns a {type(made).__name__}, no torch.nn.Module")
    return made


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape, such as 3x32x32")
    return tuple(map(int, sizes))


def measure(args: argparse.Namespace) -> tuple[Result, str]:
    """Measure the missing points of a sweep, on this machine or on a cluster."""
    from micronet_lib.lab.host.given import assignments
    from micronet_lib.lab.recipes.grids import SWEEPS
    from micronet_lib.lab.recipes.profile import PROFILES
    from micronet_lib.lab.records import provenance
    from micronet_lib.lab.running import engines
    from micronet_lib.lab.running.lineage import cases, jobs
    from micronet_lib.lab.running.measure import WORK
    from micronet_lib.lab.running.plan import as_text, table_of
    from micronet_lib.lab.running.requirements import require

    engines.check_engine(args.engine, args.gpus_per_point)
    sweep = SWEEPS[args.sweep]
    overrides = assignments(args.override)
    asked = cases(sweep, PROFILES[args.profile], args.seed, overrides, args.point)
    ahead = jobs(asked, retrain=args.retrain)
    trains = any(job.does == "train" for job in ahead)
    if args.plan or (trains and not args.json):
        plan = table_of(ahead, sweep)
        foreseen = as_text(plan)
        if args.plan:
            rows = json.loads(plan.to_json(orient="records"))
            return {"sweep": sweep.name, "profile": args.profile, "plan": rows}, foreseen
        print(foreseen, file=sys.stderr)
    require(ahead)
    table = engines.run(asked, ahead, args.engine, args.gpus_per_point)
    shown = table[["point", "n", *sweep.metrics]]
    rows = json.loads(shown.to_json(orient="records", double_precision=15))
    diverged = table.attrs["diverged"]
    result = {"sweep": sweep.name, "profile": args.profile, "points": rows, "diverged": diverged}
    possible = {job.case.point for job in ahead if job.recorded and job.does in WORK}
    undone = possible & set(table["point"][table["n"] == 0])  # diverged, or busy elsewhere
    if undone or any(job.lost for job in ahead):
        result["exit_status"] = 1
    lines = [shown.to_string(index=False), *(f"{p}: {said}" for p, said in diverged.items())]
    return result, "\n".join([*lines, provenance(table)])


def agenda(args: argparse.Namespace) -> tuple[Result, str]:
    """Measure the points of the agenda, the most wanted first, where it stopped."""
    from micronet_lib.lab.running.agenda import as_text, overview, work_through

    table, undone = overview(args.profile), list[str]()
    if not args.plan:
        print(as_text(table), file=sys.stderr)
        undone = work_through(args.profile)
        table = overview(args.profile)
    rows = json.loads(table.iloc[:-1].to_json(orient="records"))
    result: Result = {"profile": args.profile, "items": rows}
    if undone:
        result["exit_status"] = 1
    return result, as_text(table)


def compare(args: argparse.Namespace) -> tuple[Result, str]:
    """Put the paper, the committed records and this machine's side by side."""
    from shutil import get_terminal_size

    from micronet_lib.lab import records
    from micronet_lib.lab.recipes.grids import SWEEPS
    from micronet_lib.lab.recipes.profile import PROFILES

    sweeps = list(SWEEPS.values()) if args.sweep is None else [SWEEPS[args.sweep]]
    if args.profile is not None:
        asked = [sweep for sweep in sweeps if args.profile in sweep.profiles]
        if PROFILES[args.profile].dataset == "embedded" or not asked:
            known = ", ".join(name for name in sweeps[0].profiles if name != "smoke")
            raise InputError(f"nothing to compare at profile {args.profile!r}; choose from {known}")
        sweeps = asked
    listed, texts = list[Result](), []
    for sweep in sweeps:
        for profile in [args.profile] if args.profile else records.profiles_of_records(sweep):
            rows = records.compared(sweep, profile, everything=bool(args.sweep))
            if len(rows):
                texts.append(records.comparison_text(rows, get_terminal_size((1000, 24)).columns))
                listed += json.loads(rows.to_json(orient="records", double_precision=15))
    verdicts = Counter(row["verdict"] for row in listed if row["verdict"] != records.NOT_RUN)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    result: Result = {"rows": listed, "verdicts": verdicts}
    if records.OUTSIDE in verdicts:
        result["exit_status"] = 1
    return result, "\n".join([*texts, f"yours: {counts or 'no record to compare'}"])


def list_sweeps(args: argparse.Namespace) -> tuple[Result, str]:
    """List sweeps with chapter, printed tables and cost; or the points of one."""
    from micronet_lib.lab.recipes.grids import SWEEPS
    from micronet_lib.lab.records.status import as_text, listing

    if args.sweep is not None:
        names = [point.name for point in SWEEPS[args.sweep].points()]
        return {"sweep": args.sweep, "points": names}, "\n".join(names)
    table = listing()
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    return {"sweeps": rows}, as_text(table)


def curves(args: argparse.Namespace) -> tuple[Result, str]:
    """Write a page with the curves of trainings, also of those that still run."""
    import time

    from micronet_lib import plots
    from micronet_lib.lab.host.files import check_output, write_atomically
    from micronet_lib.lab.host.places import runs_root
    from micronet_lib.lab.storage.curves import curves_of, write_events

    path = args.output or runs_root() / "curves.html"
    check_output(path)
    while True:
        found = curves_of(args.what, args.profile)
        page = plots.curves_page(*found, WATCH_S if args.watch else 0)
        write_atomically(path, page.encode(), f"the page {path}")
        if args.tensorboard:
            write_events(found.table, args.tensorboard)
        runs = found.table.groupby(["point", "seed"]).ngroups
        if not args.watch:
            points = list(found.table["point"].unique())
            return {"file": str(path), "points": points, "runs": runs}, str(path)
        print(f"{path}: {runs} runs; Ctrl-C ends", file=sys.stderr)
        time.sleep(WATCH_S)


def recipe(args: argparse.Namespace) -> tuple[Result, str]:
    """Print the recipe of a point, resolved for a profile."""
    from micronet_lib.lab.host.given import assignments
    from micronet_lib.lab.recipes.grids import SWEEPS
    from micronet_lib.lab.recipes.identity import flat_settings, plain_recipe, recipe_id
    from micronet_lib.lab.recipes.profile import PROFILES, resolved

    point = SWEEPS[args.sweep].point(args.point)
    overrides = assignments(args.override)
    found = resolved(point.recipe, PROFILES[args.profile], overrides)
    settings = plain_recipe(found)
    result = {"recipe_id": recipe_id(found), "recipe": settings}
    return result, _lines({"recipe_id": result["recipe_id"], **flat_settings(settings)})


def search_policies(args: argparse.Namespace) -> tuple[Result, str]:
    """Search for augmentation policies, or resume a search."""
    from micronet_lib.lab.search.policy_search import search_policies as search
    from micronet_lib.lab.search.policy_trials import mean_controls

    path, content = search(args.profile, args.seed, args.output)
    controls = mean_controls(content["provenance"]["control"])
    num = len(content["searched"])
    result = {"file": str(path), "profile": args.profile, "seed": args.seed, "sub_policies": num}
    lines = [f"{'policies':10}  {'loss':>8}  {'top-1':>7}"]
    lines += [
        f"{kind:10}  {row['loss']:8.4f}  {row['top1']:7.2%}" for kind, row in controls.items()
    ]
    text = "\n".join([*lines, f"{num} sub-policies in {path}"])
    return {**result, "control": controls}, text


def export(args: argparse.Namespace) -> tuple[Result, str]:
    """Write the trained network of a point to a file, with recipe and score."""
    from micronet_lib.lab.recipes.grids import SWEEPS
    from micronet_lib.lab.recipes.profile import PROFILES, resolved
    from micronet_lib.lab.running.lineage import cases, jobs
    from micronet_lib.lab.running.measure import ensure, trained
    from micronet_lib.lab.running.networks import network_of, untrained
    from micronet_lib.lab.running.requirements import require
    from micronet_lib.lab.storage.networks import (
        SUFFIXES,
        check_export,
        check_exportable,
        export_network,
    )
    from micronet_lib.scoring.bill import score_network
    from micronet_lib.scoring.rules import UnpricedError

    sweep, profile = SWEEPS[args.sweep], PROFILES[args.profile]
    recipe = resolved(sweep.point(args.point).recipe, profile)
    if args.format is not None:
        check_choice("format", args.format, [suffix.removeprefix(".") for suffix in SUFFIXES])
        if args.file.suffix != f".{args.format}":
            raise InputError(f"{args.file} is no such name: end it in .{args.format}")
    check_export(args.file)
    require(jobs(cases(sweep, profile, args.seed, point=args.point)))
    check_exportable(untrained(recipe), args.file)  # training may take days
    if recipe.learns and not recipe.train.epochs:  # such as a published network
        model = network_of(recipe, profile, args.seed)
    else:
        model = trained(sweep, args.point, args.profile, args.seed)
    row = ensure(sweep, args.profile, args.seed, point=args.point).iloc[0]
    if not row["n"]:
        raise InputError(
            f"{args.sweep}/{args.point} has no record yet, because another process works on it: "
            "export it again later"
        )
    facts = {key: getattr(args, key) for key in ("sweep", "point", "profile", "seed")}
    measured = {"top1": "top1", "official_score": "official.score"}
    if "last_top1" in row:  # of an early exit: as a file is rated, and as images leave
        measured |= {"top1": "last_top1", "top1_with_exits": "top1", "threshold": "threshold"}
        measured |= {"exit_rate": "exit_rate", "expected_score": "official.expected_score"}
    facts |= {name: float(row[key]) for name, key in measured.items() if key in row}
    result = {"file": str(args.file), **facts}
    with suppress(UnpricedError):  # the authors' counter knows few operations
        score = score_network(model, "published").metrics()
        facts["score"], result["score"] = score, score["score"]
    export_network(model, args.file, recipe, **facts)
    result["bytes"] = args.file.stat().st_size
    return result, _lines(result)


def promote(args: argparse.Namespace) -> tuple[Result, str]:
    """Copy records of this machine to the committed ones."""
    from micronet_lib.lab.records.record import promote as promote_records

    done = promote_records(args.records, replacing=args.replace)
    lines, replaced = [], list[Result]()
    for each in done:
        lines.append(str(each.path))
        for name, (old, new) in each.changes.items():
            lines.append(f"  {name}  {_shown(old)} -> {_shown(new)}")
            replaced.append({"record": str(each.path), "metric": name, "old": old, "new": new})
    result = {"records": [str(each.path) for each in done], "replaced": replaced}
    return result, "\n".join(lines)


class _Once(argparse.Action):
    """Store an option's value. An option that is given twice raises `InputError`.

    argparse would silently take the last value.
    """

    given = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        if self.given and self.option_strings:
            several = ""
            if self.metavar == "PATTERN":
                several = ", or a pattern such as 'linear-*', which names several"
            elif self.nargs == "*":
                several = ", with all values after it"
            raise InputError(f"{self.option_strings[0]} is given twice: give it once{several}")
        self.given = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help ends with what may be chosen.

    The names come from the library, which takes a while to import, so only where they are needed.
    """

    choosing: tuple[str, ...] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("action", None, _Once)  # what an argument without `action` does

    def format_help(self) -> str:
        found = super().format_help()
        if not self.choosing:
            return found
        from micronet_lib.lab.recipes.grids import SWEEPS
        from micronet_lib.lab.recipes.profile import PROFILES
        from micronet_lib.lab.running.engines import ENGINES

        known: dict[str, Iterable[str]]
        known = {"sweep": SWEEPS, "profile": PROFILES, "engine": ENGINES}
        lines = [f"{name}: {', '.join(known[name])}" for name in self.choosing]
        return found + "\n" + "\n".join(textwrap.fill(line, 79) for line in lines) + "\n"

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` lists what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="micronet", description="The MicroNet book's tools.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(where: Any, name: str, verb: Callable[..., Any], *choosing: str) -> _Parser:
        sub = where.add_parser(name, parents=[common], help=verb.__doc__, description=verb.__doc__)
        sub.set_defaults(verb=verb)
        sub.choosing = choosing
        return sub

    data = verbs.add_parser("data", help="Data sets, checkpoints and policies.")
    data_verbs = data.add_subparsers(required=True, metavar="VERB")
    fetch = add(data_verbs, "fetch", data_fetch)
    fetch.add_argument("groups", nargs="*", metavar="cifar100|kaist|policies")
    checked = add(data_verbs, "check", data_check)
    checked.add_argument("groups", nargs="*", metavar="cifar100|kaist|policies")
    picture = add(data_verbs, "picture", data_picture)
    picture.add_argument("file", type=Path)

    sub = add(verbs, "evaluate", evaluate)
    sub.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    sub.add_argument("--dataset", default="cifar100")
    sub.add_argument(
        "--runtime",
        help="torch; openvino, as always for an .onnx file; integer: numpy alone, for a .mnet file",
    )

    sub = add(verbs, "score", score)
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="FILE")
    what.add_argument("--model", metavar="NAME")
    what.add_argument("--network", metavar="MODULE:NAME", help="callable that returns a module")
    sub.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="of NAME()")
    sub.add_argument(
        "--input", type=_shape, metavar="CxHxW", help="shape of one image; default 3x32x32"
    )
    sub.add_argument("--rules", metavar="NAME", help="published, or official for --network")
    sub.add_argument("--weight-bits", type=int, default=0, help=WIDTHS)
    sub.add_argument("--activation-bits", type=int, default=0, help=WIDTHS)
    sub.add_argument("--accumulator", default="fp32", help="fp32, integer or adder_tree")
    sub.add_argument("--save", nargs="*", metavar="SAVING", help="free savings to apply, in order")
    sub.add_argument("--layers", action="store_true", help="print the bill line by line")

    sub = add(verbs, "measure", measure, "sweep", "profile", "engine")
    sub.add_argument("sweep")
    sub.add_argument("--point", metavar="PATTERN", help="for example 3.0-orn or '3.0-*'")
    sub.add_argument("--profile", required=True)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    sub.add_argument("--plan", action="store_true", help="print what would run, and stop")
    sub.add_argument("--engine", default="local", help="local, or ray for a cluster")
    sub.add_argument("--gpus-per-point", type=float, metavar="FRACTION", help="with ray only")
    sub.add_argument(
        "--retrain",
        action="store_true",
        help="train again what is lost or failed, though it has a record",
    )

    sub = add(verbs, "agenda", agenda, "profile")
    sub.add_argument("--profile", required=True)
    sub.add_argument("--plan", action="store_true", help="print what is done and left, and stop")

    sub = add(verbs, "list", list_sweeps, "sweep")
    sub.add_argument("sweep", nargs="?", help="to list its points")

    sub = add(verbs, "compare", compare, "sweep", "profile")
    sub.epilog = "How closely to agree: README.md, 'What to expect when you run it'."
    sub.add_argument("sweep", nargs="?", help="all sweeps without one")
    sub.add_argument("--profile", help="quick, day or full; by default all that have records")

    sub = add(verbs, "curves", curves, "sweep", "profile")
    sub.add_argument("what", metavar="FOLDER|SWEEP", help="a folder of runs, or a sweep")
    sub.add_argument("--profile", default="", help="of a sweep; by default the largest with curves")
    sub.add_argument("--watch", action="store_true", help="write it again every few seconds")
    sub.add_argument("--output", type=Path, metavar="FILE", help="default: curves.html in runs/")
    sub.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="also write event files")

    sub = add(verbs, "recipe", recipe, "sweep", "profile")
    sub.add_argument("sweep")
    sub.add_argument("point")
    sub.add_argument("--profile", required=True)
    sub.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")

    sub = add(verbs, "search-policies", search_policies, "profile")
    sub.add_argument("--profile", required=True)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--output", type=Path, metavar="FILE", help="policy file to write")

    sub = add(verbs, "export", export, "sweep", "profile")
    sub.add_argument("sweep")
    sub.add_argument("file", type=Path, metavar="FILE.safetensors|FILE.mnet|FILE.onnx")
    sub.add_argument("--format", help="safetensors, mnet or onnx; by default what FILE ends in")
    sub.add_argument("--point", required=True)
    sub.add_argument("--profile", required=True)
    sub.add_argument("--seed", type=int, default=0)

    sub = add(verbs, "promote", promote)
    sub.add_argument("records", nargs="+", type=Path)
    sub.add_argument("--replace", action="store_true", help="replace another measurement")
    return parser


if __name__ == "__main__":
    sys.exit(main())
