"""A training without a network, with the flags of scripts/train.py: what sweeps are tested with.

It writes an evaluation at step 0 and at every tenth step, its score a function of rank and seed,
keeps its step in the folder, goes on from there, and saves and leaves on SIGTERM.

What else it does is in the JSON of the environment variable FAKE: {"pause": seconds a call,
"error": [ranks], "nan": [ranks], "bad": [ranks]}.
"""

import json
import os
import pathlib
import signal
import sys
import time

STEPS = 50


def score(rank, seed, step, *, bad=False):
    return 100.0 / (1 + step) + rank + 0.25 * seed + (1000 if bad else 0)


def write(folder, record):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def main():
    flags = [word.removeprefix("--").split("=", 1) for word in sys.argv[1:]]
    params = dict(
        [part.strip() for part in value.split("=")] for name, value in flags if name == "gin_param"
    )
    rank, seed = int(params["G/context.Hamburger.rank"]), int(params["trainer.Trainer.seed"])
    behaviour = json.loads(os.environ.get("FAKE", "{}"))
    folder = pathlib.Path(dict(flags)["model_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "step"
    step = int(kept.read_text()) if kept.exists() else 0
    with open(folder / "starts", "a") as file:
        file.write(f"{step}\n")
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    if rank in behaviour.get("error", ()):
        print("Working.\nERROR: this rank is out of luck")
        sys.exit(1)
    if step == 0:
        write(folder, {"kind": "evaluation", "step": 0, "fid": 1500.0 + rank})
    while step < STEPS:
        time.sleep(behaviour.get("pause", 0))
        if stopped:
            print("Stopped before its end.")
            return
        step += 10
        fid = score(rank, seed, step, bad=rank in behaviour.get("bad", ()))
        fid = None if rank in behaviour.get("nan", ()) else fid
        write(folder, {"kind": "train", "step": step, "images_per_second": 10.0 * rank})
        write(folder, {"kind": "evaluation", "step": step, "fid": fid})
        # Two trials of one point may share the folder; neither must see half a number.
        new = folder / f"step.{os.getpid()}"
        new.write_text(str(step))
        new.rename(kept)


if __name__ == "__main__":
    main()
