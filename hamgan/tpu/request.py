"""What is asked for: which TPU, and which training on it."""

import dataclasses
import pathlib
import re
import subprocess

from hamgan.tpu import chips
from hamgan.tpu.gcloud import note

TIERS = ("on_demand", "spot", "reserved", "flex_start")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Which TPU.

    Attributes:
      name: of the request and its node.
      zone: e.g. 'us-west4-a'.
      type: accelerator type, 'v5litepod-8'.
      project: None: gcloud's own.
      tier: one of TIERS.
      runtime_version: image; None: the chip's.
      max_run_duration: with flex_start, e.g. '7d'.
    """

    name: str
    zone: str
    type: str = "v5litepod-8"
    project: str | None = None
    tier: str = "on_demand"
    runtime_version: str | None = None
    max_run_duration: str = "7d"

    def __post_init__(self):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise ValueError(
                "name must be small letters, digits and dashes, beginning with a letter, at most "
                f"63 of them; got {self.name!r}."
            )
        if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z]", self.zone):
            raise ValueError(
                "zone must be like us-west4-a; list: gcloud compute tpus locations list; got "
                f"{self.zone!r}."
            )
        if self.tier not in TIERS:
            raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {self.tier!r}.")
        if self.tier == "flex_start" and self.machine.chip.name not in ("v5e", "v6e"):
            raise ValueError(
                f"flex-start is offered for v5e and v6e, not for type={self.type!r}. Take another "
                "tier."
            )

    @property
    def machine(self):
        return chips.from_type(self.type)

    @property
    def where(self):
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to train.

    Attributes:
      model_dir: the run's folder, in a bucket.
      data_dir: prepared data, in a bucket or an absolute path on the VM.
      gin_file: inside the repository, or in a bucket.
      gin_params: more bindings.
    """

    model_dir: str
    data_dir: str
    gin_file: str = "configs/hamgan_strong.gin"
    gin_params: tuple = ()

    def __post_init__(self):
        if not re.fullmatch(r"gs://[^/]+/.+", self.model_dir):
            raise ValueError(
                "model_dir must be a folder in a bucket, gs://BUCKET/FOLDER, because the VM's disk "
                f"goes with the VM; got {self.model_dir!r}."
            )
        if not re.match(r"gs://[^/]+|/", self.data_dir):
            raise ValueError(
                "data_dir must be gs://BUCKET/FOLDER, or an absolute path on the VM, because a new "
                f"VM has no data sets; got {self.data_dir!r}."
            )
        if self.gin_file.startswith("/") or re.match(r"(?!gs:)\w+://", self.gin_file):
            raise ValueError(
                "gin_file must be a path inside the repository or gs://..., because the VM has "
                f"only those; got {self.gin_file!r}."
            )
        for text in (self.model_dir, self.data_dir, self.gin_file, *self.gin_params):
            if "\n" in text:
                raise ValueError(f"An argument must be one line, got {text!r}.")

    def flags(self, tpu="local"):
        """The words of a script's command line; tpu: 'local', or a slice's name."""
        words = ["--accelerator=tpu", f"--tpu={tpu}", f"--gin_file={self.gin_file}"]
        words += [f"--model_dir={self.model_dir}", f"--data_dir={self.data_dir}"]
        return [*words, *(f"--gin_param={binding}" for binding in self.gin_params)]


def check_repository(path, *, strict=True):
    """Where the archive of a checkout's last commit belongs.

    Args:
      path: the checkout.
      strict: changes that the last commit hasn't got are an error; else they are only said.

    Raises:
      ValueError: it isn't a checkout of this project, or has changes that aren't committed.
    """

    def git(*words):
        return subprocess.run(["git", "-C", path, *words], capture_output=True, text=True)

    found = git("rev-parse", "--absolute-git-dir")
    if found.returncode:
        raise ValueError(
            "repository must be a git checkout or an address to clone; in a copy without .git: "
            f"git init, add and commit; got {path!r}."
        )
    for name in ("requirements-tpu-3.10.lock", "setup.py", "scripts/train.py"):
        if not (pathlib.Path(path) / name).is_file():
            raise ValueError(f"repository must be this project, but {path} has no {name}.")
    changed = git("status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    if changed:
        text = (
            "repository has changes that the last commit, which is copied, hasn't got. Commit "
            f"them: {' '.join(changed[:5])}"
        )
        if strict:
            raise ValueError(text)
        note(f"A launch would stop here: {text}")
    return str(pathlib.Path(found.stdout.strip()) / "launch_tpu.tar.gz")
