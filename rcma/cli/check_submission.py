"""``rcma-check-submission``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.console import EXIT_DONE, EXIT_SOME_FAILED, HelpFormatter, add_common_arguments, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rcma-check-submission``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="rcma-check-submission",
        description="Check whether a submission to the challenge would be accepted, and list every problem: header, "
        "order, coverage, duplicates, spelling, range, nan, columns, cut-off files, and valence or arousal that never "
        "changes in the whole submission or in a video of more than 25 rows. A 'note' is no reason to reject it.",
        epilog="exit code: 0 accepted; 1 refused; 2 the submission or the sample file cannot be read\n\n"
        "example:\n  rcma-check-submission predictions.txt --template CVPR_6th_ABAW_VA_test_set_sample.txt",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "submission",
        metavar="FILE",
        help="the file for all videos (editions 5 and later), or the folder of VIDEO.txt files (editions 2 and 3)",
    )
    parser.add_argument(
        "--template",
        metavar="SAMPLE_FILE",
        help="the organisers' sample file; without it, coverage and order are not checked",
    )
    add_common_arguments(parser, device=False)
    return run_command(_check_submission, parser, argv)


def _check_submission(args: argparse.Namespace) -> int:
    from rcma.abaw import check_submission as check

    report = check(Path(args.submission), template=Path(args.template) if args.template else None)
    verdict = "refused" if report.problems else "accepted"
    print(f"{args.submission}: {verdict}; {report.n_rows} rows of {report.n_videos} videos")
    for problem in report.problems:
        print(f"  wrong: {problem}")
    for remark in report.remarks:
        print(f"  note: {remark}")
    if not args.template:
        print("  note: coverage and order were not checked: give the organisers' sample file as --template")
    return EXIT_SOME_FAILED if report.problems else EXIT_DONE
