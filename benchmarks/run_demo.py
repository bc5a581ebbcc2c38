"""The whole job on the bundled clips: preprocess, train, predict the held-out clips, evaluate.

usage: make demo [VIDEO=my.mp4]

Runs the four commands as a user would, and prints them. Finished steps are not repeated, so a second run is quick. With
VIDEO set, the trained model also predicts that file.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

BUNDLED = Path("benchmarks/demo")
OUT = Path("demo")
FEATURES, RUN, PREDICTIONS, OWN = OUT / "features", OUT / "run", OUT / "predictions", OUT / "own"
TEST_SET = BUNDLED / "annotations" / "Test_Set"


def command(name: str, *arguments: str | Path) -> None:
    """Print a command and run it; a failure ends the demo with the command's own exit code."""
    words = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    print(f"\n$ {shlex.join([name, *words[1:]])}", flush=True)
    result = subprocess.run(words)
    if result.returncode != 0:
        sys.exit(result.returncode)


def main() -> None:
    """Run the demo from the project's root."""
    begin = time.perf_counter()
    command("rcma-preprocess", BUNDLED / "clips", "--out", FEATURES, "--config", "configs/demo_preprocess.yaml")
    command("rcma-train", "--config", "configs/demo.yaml", "--out", RUN, "--resume")
    held_out = [FEATURES / annotation.stem for annotation in sorted(TEST_SET.glob("*.txt"))]
    command("rcma-predict", "--checkpoint", RUN, *held_out, "--out", PREDICTIONS, "--report", "--annotations", TEST_SET)
    command("rcma-evaluate", "--predictions", PREDICTIONS, "--annotations", TEST_SET)
    scores = json.loads((PREDICTIONS / "scores.json").read_text(encoding="utf-8"))
    print(f"\nThe demo took {time.perf_counter() - begin:.0f} s. On the {len(held_out)} held-out clips, CCC:")
    for target in ("valence", "arousal", "mean"):
        print(f"  {target:8} {scores[target]:.3f}")
    print(f"features {FEATURES}/, model {RUN}/, predictions {PREDICTIONS}/; open {PREDICTIONS}/report.html")
    print(
        "The clips are an animated portrait with a synthetic voice and synthetic labels. They show that the parts work"
    )
    print("together, not how well a model predicts people.")
    video = os.environ.get("VIDEO")
    if video:
        command("rcma-predict", "--checkpoint", RUN, "--out", OWN, "--report", "--", Path(video))
        print(f"\nValence and arousal per frame of {video} are in {OWN}/; open {OWN}/report.html.")
        print("NOTE: this model was trained on synthetic labels only. Its values for real people mean nothing.")


if __name__ == "__main__":
    main()
