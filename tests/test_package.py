from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rcma


def test_import_is_quick_and_loads_no_network_library():
    program = "import sys, rcma; print(rcma.__version__, 'torch' in sys.modules or 'numpy' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert ended.stdout.split() == [rcma.__version__, "False"]


def test_public_names_are_there_whatever_was_imported_before():
    import rcma.model.checkpoint
    import rcma.predictor

    assert rcma.load_model is rcma.model.checkpoint.load_model
    assert rcma.Predictor is rcma.predictor.Predictor
    assert rcma.metrics.ccc([0.0, 1.0], [0.0, 1.0]) == pytest.approx(1.0)
    assert callable(rcma.published.load)
    with pytest.raises(AttributeError, match="nothing"):
        rcma.nothing  # noqa: B018
