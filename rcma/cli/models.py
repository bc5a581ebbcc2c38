"""``rcma-models``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    add_common_arguments,
    error_console,
    print_failure,
    print_table,
    run_command,
)
from preprocessing.errors import InputError

if TYPE_CHECKING:
    from rcma.experts import FaceEntry, OnProgress, VoiceEntry

log = logging.getLogger("rcma")

_EXAMPLE = """\
examples:
  rcma-models list
  rcma-models fetch enet_b0_8_va_mtl
  rcma-models fetch audeering --accept-licence audeering
  rcma-models check --smile portrait.jpg

Models lie in the folder that the environment variable RCMA_MODELS names, by default ~/.cache/rcma. Files may be put
there by hand; rcma-models list says where. A file with a wrong checksum is not used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-models``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-models",
        description="List, download and check the public models of valence and arousal for faces and voices.",
        epilog=_EXAMPLE,
        formatter_class=HelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="list|fetch|check", required=True)
    listing = actions.add_parser("list", help="what there is: licence, training data, scores, and what is here")
    fetching = actions.add_parser("fetch", help="download models", formatter_class=HelpFormatter)
    fetching.add_argument("names", nargs="+", metavar="NAME", help="of a model, as rcma-models list shows it")
    fetching.add_argument(
        "--accept-licence",
        dest="accepted",
        metavar="NAME",
        action="append",
        default=[],
        help="accept the licence of this model's weights; remembered. May be given many times",
    )
    checking = actions.add_parser(
        "check", help="run the models that are here on made-up input", formatter_class=HelpFormatter
    )
    checking.add_argument("names", nargs="*", metavar="NAME", help="of models; all that are here, if none is named")
    checking.add_argument("--smile", metavar="FILE", help="picture or video of a smiling face, for the face models")
    for action, work in ((listing, _list), (fetching, _fetch), (checking, _check)):
        action.set_defaults(work=work)
        add_common_arguments(action, device=False)
    return run_command(lambda args: args.work(args), parser, argv)


def _list(args: argparse.Namespace) -> int:
    from rcma.experts import destination, entries, how_to_get, packaged

    for model in packaged().values():
        lines = {
            "here": "comes with the package",
            "gives": model.what,
            "weights": model.weights_licence,
            "trained on": model.trained_on,
            "scores": model.scores,
            "source": model.source,
        }
        _print_model(f"{model.name} ({model.modality})", lines)
    for entry in entries().values():
        state = _state(entry)
        lines = {
            "here": state if state != "yes" else f"yes, {destination(entry)}",
            "code": entry.code_licence,
            "weights": entry.weights_licence,
            "trained on": entry.trained_on,
            "scores": entry.scores,
            "source": entry.source,
            **({"get it": how_to_get(entry.name)} if state != "yes" else {}),
        }
        _print_model(f"{entry.name} ({entry.modality})", lines)
    return EXIT_DONE


def _print_model(name: str, lines: Mapping[str, str]) -> None:
    print(name)
    for label, text in lines.items():
        print(f"  {label:<12}{text}")


def _state(entry: FaceEntry | VoiceEntry) -> str:
    from rcma.experts import is_accepted, is_here, locate

    if not is_here(entry):
        return "no"
    if not is_accepted(entry):
        return "licence not accepted"
    try:
        locate(entry)
    except InputError as error:
        log.warning("%s", error)
        return "wrong checksum"
    return "yes"


def _fetch(args: argparse.Namespace) -> int:
    from rcma.experts import accept_licence, fetch_model, find_entry, is_accepted, is_here

    wanted = [find_entry(name) for name in dict.fromkeys(args.names)]
    for name in args.accepted:
        entry = find_entry(name)
        if not is_accepted(entry):
            accept_licence(entry)
            print(f"{name}: licence accepted: {entry.weights_licence}")
    failed = False
    for entry in wanted:
        was_here = is_here(entry)
        try:
            with _download_bar() as on_progress:
                path = fetch_model(entry, on_progress=on_progress)
        except InputError as error:
            print_failure(error)
            failed = True
        else:
            print(f"{entry.name}: {path}{' (was there already)' if was_here else ''}; {entry.weights_licence}")
    return EXIT_SOME_FAILED if failed else EXIT_DONE


@contextmanager
def _download_bar() -> Iterator[OnProgress]:
    """A bar for each file on a terminal; elsewhere a line for each file."""
    console = error_console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
                if not console.is_terminal:
                    size = "" if total is None else f" ({total / 1e6:.1f} MB)"
                    console.print(f"downloading {name}{size}", markup=False, soft_wrap=True)
            bar.update(tasks[name], completed=done)

        yield show


def _check(args: argparse.Namespace) -> int:
    from rcma.experts import check_model, entries, find_entry, find_face, how_to_get, is_accepted, is_here

    wanted = [find_entry(name) for name in args.names] or [entry for entry in entries().values() if is_here(entry)]
    smile = find_face(Path(args.smile)) if args.smile else None
    findings, failed = [], False
    for entry in wanted:
        if not is_here(entry) or not is_accepted(entry):
            print_failure(f"{entry.name}: cannot be used yet: {how_to_get(entry.name)}")
            failed = True
            continue
        try:
            findings += check_model(entry, smile)
        except InputError as error:
            print_failure(error)
            failed = True
    if not wanted:
        print("no public model is here; rcma-models list shows how to get them")
    if findings:
        print_table(
            "fetched models on made-up input" if smile is None else f"fetched models on made-up input and {args.smile}",
            ["model", "given", "valence", "arousal", "result"],
            [[f.model, f.given, f"{f.valence:+.3f}", f"{f.arousal:+.3f}", f.verdict] for f in findings],
        )
    if smile is None and any(entry.modality == "face" for entry in wanted):
        print("whether a smile is pleasant: rcma-models check --smile FILE, with a picture of a smiling face")
    return EXIT_SOME_FAILED if failed or not all(f.passed for f in findings) else EXIT_DONE
