"""``rcma-models``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    HelpFormatter,
    add_common_arguments,
    print_failure,
    print_table,
    run_command,
)
from preprocessing.errors import InputError

_EXAMPLE = """\
examples:
  rcma-models list
  rcma-models fetch enet_b0_8_va_mtl
  rcma-models fetch audeering --accept-licence audeering
  rcma-models check --smile portrait.jpg

Models are stored in the folder given by the environment variable RCMA_MODELS, by default ~/.cache/rcma. You may copy
files there by hand; rcma-models list shows where. A file with a wrong checksum is not used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-models``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-models",
        description="List, download and check the public models of valence and arousal for faces and voices.",
        epilog=_EXAMPLE,
        formatter_class=HelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="list|fetch|check", required=True)
    listing = actions.add_parser(
        "list", help="show each model's licences, training data and scores, and whether it is on this machine"
    )
    fetching = actions.add_parser("fetch", help="download models", formatter_class=HelpFormatter)
    fetching.add_argument("names", nargs="+", metavar="NAME", help="of a model, as shown by rcma-models list")
    fetching.add_argument(
        "--accept-licence",
        dest="accepted",
        metavar="NAME",
        action="append",
        default=[],
        help="accept the licence of this model's weights; remembered. May be given many times",
    )
    checking = actions.add_parser("check", help="run downloaded models on noise", formatter_class=HelpFormatter)
    checking.add_argument("names", nargs="*", metavar="NAME", help="of models; without names, all on this machine")
    checking.add_argument("--smile", metavar="FILE", help="picture or video of a smiling face, for the face models")
    for action, work in ((listing, _list), (fetching, _fetch), (checking, _check)):
        action.set_defaults(work=work)
        add_common_arguments(action, device=False)
    return run_command(lambda args: args.work(args), parser, argv)


def _list(args: argparse.Namespace) -> int:
    from rcma.experts import entries, packaged

    here = dict.fromkeys(packaged(), "comes with the package")
    for name, entry in entries().items():
        try:
            here[name] = f"yes, {entry.locate()}"
        except InputError as error:
            here[name] = f"no: {error}"
    for name, model in {**packaged(), **entries()}.items():
        print(f"{name} ({model.modality})")
        lines = {
            "here": here[name],
            "gives": model.gives,
            "licence": model.licence,
            "trained on": model.trained_on,
            "scores": model.scores,
            "source": model.source,
        }
        for label, text in lines.items():
            print(f"  {label:<12}{text}")
    return EXIT_DONE


def _fetch(args: argparse.Namespace) -> int:
    from rcma.experts import find_entry

    wanted = [find_entry(name) for name in dict.fromkeys(args.names)]
    for entry in map(find_entry, args.accepted):
        if not entry.is_accepted():
            entry.accept_licence()
            print(f"{entry.name}: licence accepted: {entry.weights_licence}")
    code = EXIT_DONE
    for entry in wanted:
        was_here = " (was there already)" if entry.is_here() else ""
        try:
            print(f"{entry.name}: {entry.fetch()}{was_here}; {entry.weights_licence}")
        except InputError as error:
            print_failure(error)
            code = EXIT_SOME_FAILED
    return code


def _check(args: argparse.Namespace) -> int:
    from rcma.experts import check_model, entries, find_entry, find_face

    wanted = [find_entry(name) for name in args.names] or [entry for entry in entries().values() if entry.is_here()]
    smile = find_face(Path(args.smile)) if args.smile else None
    findings, code = [], EXIT_DONE
    for entry in wanted:
        try:
            findings += check_model(entry, smile)
        except InputError as error:
            print_failure(f"{entry.name}: {error}")
            code = EXIT_SOME_FAILED
    if not wanted:
        print("no public model was downloaded; rcma-models list shows how to get them")
    if findings:
        print_table(
            "downloaded models on noise" if smile is None else f"downloaded models on noise and {args.smile}",
            ["model", "given", "valence", "arousal", "result"],
            [[f.model, f.given, f"{f.valence:+.3f}", f"{f.arousal:+.3f}", f.verdict] for f in findings],
        )
    return code if all(finding.passed for finding in findings) else EXIT_SOME_FAILED
