"""In: a command line, ``main(argv)`` of one module per command.
Out: what the command prints and its exit code.
"""

from rcma.cli import calibrate, check_submission, evaluate, export, import_features, models, predict, train

__all__ = ["calibrate", "check_submission", "evaluate", "export", "import_features", "models", "predict", "train"]
