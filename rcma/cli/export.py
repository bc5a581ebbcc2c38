"""``rcma-export``."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from preprocessing.console import EXIT_DONE, HelpFormatter, add_common_arguments, run_command
from preprocessing.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-export``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-export",
        description="A trained model as a folder for the Hugging Face Hub: configuration, weights, and a model card "
        "written from the run's own settings and scores, without paths of this machine.",
        epilog="example:\n  rcma-export run --out my-model --license cc-by-nc-4.0\n  hf upload org/my-model my-model",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="RUN", help="run folder, or another checkpoint that rcma-predict accepts")
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="new folder: config.json, model.safetensors, README.md"
    )
    parser.add_argument(
        "--license", metavar="ID", help="licence of the weights, as the Hub names it: mit, cc-by-nc-4.0"
    )
    parser.add_argument("--name", metavar="TEXT", help="title of the model card; made from the settings if not given")
    parser.add_argument("--dataset", metavar="ID", help="training data, as the Hub names it: org/dataset")
    add_common_arguments(parser, device=False)
    return run_command(_export, parser, argv)


def _export(args: argparse.Namespace) -> int:
    for option in ("license", "dataset"):
        given = getattr(args, option)
        if given is not None and not re.fullmatch(r"[\w./-]+", given):
            raise InputError(
                f"--{option} {given!r}: give its identifier on the Hugging Face Hub, a word without spaces"
            )
    if args.name is not None and (not args.name.strip() or len(args.name.splitlines()) > 1):
        raise InputError(f"--name {args.name!r}: give one line of text")
    from rcma.model import export_model, load_model

    out = Path(args.out)
    model = load_model(args.checkpoint)
    export_model(model, out, name=args.name, license=args.license, dataset=args.dataset)
    print(f"{out} holds the model, read again to be sure; after a look at its README.md, share it with")
    print(f"  hf auth login && hf upload org/model {shlex.quote(str(out))}")
    print("and use it with")
    print("  rcma-predict --checkpoint org/model video.mp4 --out predictions")
    return EXIT_DONE
