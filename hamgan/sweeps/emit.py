"""A sweep as text for machines elsewhere: an array job of Slurm's, or commands for Cloud TPUs."""

import re
import shlex


def text(kind, sweep, *, flags):
    """The job.

    Args:
      kind: 'slurm' or 'tpu'.
      sweep: the `Sweep`.
      flags: {name: value} of the command: sweep, gin_param, output_dir, data_dir, storage,
        accelerator, workers.

    Raises:
      ValueError: a storage that many machines can't share, or a sweep that has no fixed points.
    """
    return {"slurm": slurm, "tpu": tpu}[kind](sweep, flags)


def _command(flags, storage, workers=1):
    words = ["python", "scripts/sweep.py"]
    given = {**flags, "storage": storage, "workers": workers, "wait": "false"}
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}={part}" for part in values if part is not None]
    return shlex.join(words)


def slurm(sweep, flags):
    """An array job: each task is a worker, which joins the study and leaves when no trial waits."""
    output_dir = _output_dir(flags)
    storage = flags["storage"] or f"{output_dir}/study.journal"
    if storage.startswith("sqlite"):
        raise ValueError(
            f"--storage={storage} is for one machine. Give PostgreSQL's URL, or the path of a "
            "journal file in a folder that all nodes share."
        )
    tasks = max(1, min(flags["workers"], sweep.num_trials()))
    return "\n".join(
        [
            "#!/bin/bash",
            "# First, once, to fill the queue (and at the end, for the page):",
            f"#   {_command(flags, storage, workers=0)}",
            "# sbatch THIS FILE. Memory, time, partition and GPUs (--gres=gpu:1) are to be filled "
            "in.",
            f"#SBATCH --job-name={sweep.name}",
            f"#SBATCH --array=0-{tasks - 1}",
            "#SBATCH --ntasks=1",
            "#SBATCH --time=24:00:00",
            "# Two minutes before the end trainings save and leave their trial to others.",
            "#SBATCH --signal=B:TERM@120",
            "#SBATCH --requeue",
            f"#SBATCH --output={output_dir}-%A_%a.log",
            "set -e",
            'cd "$SLURM_SUBMIT_DIR"',
            "source .venv/bin/activate",
            "# One shell less between the signal and the worker.",
            f"exec {_command(flags, storage)}",
            "",
        ]
    )


def tpu(sweep, flags):
    """Commands that train each point with each seed on a Cloud TPU of its own."""
    if sweep.of_segmentation:
        raise ValueError(
            "--emit=tpu writes commands of scripts/launch_tpu.py, which trains GANs, and "
            f"{sweep.name} trains segmentation networks: --emit=slurm, or run it here."
        )
    if sweep.sampler != "grid":
        raise ValueError(
            f"--emit=tpu knows the points of a grid only, and the sampler is {sweep.sampler!r}."
        )
    output_dir = _output_dir(flags)
    lines = [
        "# Afterwards, or while they train: the page (a training that is complete isn't repeated).",
        f"#   {_command(flags, flags['storage'] or 'study.journal')}",
        "ZONE=us-west4-a TYPE=v5litepod-8",
    ]
    stem = re.sub(r"[^a-z0-9]+", "-", sweep.name.lower()).strip("-")
    for seed in sweep.seeds:
        for index, point in enumerate(sweep.grid()):
            if len(point.gin_files) != 1:
                raise ValueError(
                    "--emit=tpu needs one gin file a point, as scripts/launch_tpu.py does; "
                    f"{point.name} has {list(point.gin_files)}."
                )
            name = f"{stem}-{index}-{seed}"
            where = f'--name={name} --zone="$ZONE" --type="$TYPE" --spot'
            params = [*point.gin_params, f"trainer.Trainer.seed = {seed}"]
            lines += [
                f"# {point.folder(seed)}",
                f"python scripts/launch_tpu.py up {where}",
                f"python scripts/launch_tpu.py install {where}",
                " ".join(
                    [
                        f"python scripts/launch_tpu.py train {where} --detach",
                        shlex.quote(f"--gin_file={point.gin_files[0]}"),
                        *(shlex.quote(f"--gin_param={param}") for param in params),
                        shlex.quote(f"--model_dir={output_dir}/{point.folder(seed)}"),
                        shlex.quote(f"--data_dir={flags['data_dir']}"),
                    ]
                ),
            ]
    return "\n".join([*lines, ""])


def _output_dir(flags):
    if not flags["output_dir"]:
        raise ValueError("--output_dir must say where the trainings go.")
    return flags["output_dir"].rstrip("/")
