"""What is asked for: which TPU, and which training on it."""

import dataclasses
import pathlib
import re
import subprocess

from hamgan.tpu import chips
from hamgan.tpu.gcloud import note

TIERS = ("on_demand", "spot", "reserved", "flex_start")
_FLEX_DURATION = "7d"  # the longest there is
# What git clones, of all that looks like an address.
_ADDRESS = r"(https?|ssh|git)://.+|git@.+"


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
      max_run_duration: with flex_start, e.g. '2d12h'; None: '7d'.
    """

    name: str
    zone: str
    type: str = "v5litepod-8"
    project: str | None = None
    tier: str = "on_demand"
    runtime_version: str | None = None
    max_run_duration: str | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise ValueError(
                "name must be small letters, digits and dashes, beginning with a letter, at most "
                f"63 of them; got {self.name!r}."
            )
        if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z0-9]+", self.zone):
            raise ValueError(
                "zone must be like us-west4-a; list: gcloud compute tpus locations list; got "
                f"{self.zone!r}."
            )
        for name, form, example in (
            ("project", r"[a-z][-a-z0-9.:]*", "my-project-1"),
            ("runtime_version", r"[-a-z0-9.]+", "v2-alpha-tpuv5-lite"),
            ("max_run_duration", r"([0-9]+[dhms])+", "2d12h"),
        ):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(form, value):
                raise ValueError(f"{name} must be like {example}, got {value!r}.")
        if self.max_run_duration and self.tier != "flex_start":
            raise ValueError(
                f"max_run_duration is for flex_start, not for {self.tier}, which has no end."
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
    def duration(self):
        """How long a flex-start machine may run."""
        return self.max_run_duration or _FLEX_DURATION

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
        for text in (self.model_dir, self.data_dir):
            if re.search(r"\s", text) and text.startswith("gs://"):
                raise ValueError(f"An address in a bucket has no spaces, got {text!r}.")
        for binding in self.gin_params:
            if not re.match(r"\s*[\w./]+\s*=", binding):
                raise ValueError(f"gin_param must be NAME = VALUE, got {binding!r}.")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What is installed on a machine.

    Attributes:
      repository: a checkout's folder, or an address that the machine clones.
      commit: of the checkout; a machine that is made again gets what the first had. None: of an
        address, whose newest is cloned.
      archive: the file that the commit is packed into.
    """

    repository: str
    commit: str | None = None
    archive: str | None = None


def is_address(repository):
    """Whether it is an address to clone, not a folder."""
    return bool(re.fullmatch(_ADDRESS, repository))


def source_of(repository, *, gin_file=None, strict=True):
    """The `Source` of a checkout as it is now, or of an address.

    Args:
      repository: either.
      gin_file: a path inside it that the machine will read.
      strict: changes that the last commit hasn't got are an error; else they are only said.

    Raises:
      ValueError: it isn't a checkout of this project, has changes that aren't committed, or its
        last commit has no such gin file.
    """
    if is_address(repository):
        return Source(repository=repository)

    def git(*words):
        try:
            return subprocess.run(["git", "-C", repository, *words], capture_output=True, text=True)
        except FileNotFoundError:
            raise ValueError(
                "git isn't on the PATH: with it the last commit of a checkout is packed."
            ) from None

    found = git("rev-parse", "--absolute-git-dir")
    if not repository or found.returncode:
        raise ValueError(
            "repository must be a git checkout or an address to clone (https://, ssh://, git@); in "
            f"a copy without .git: git init, add and commit; got {repository!r}."
        )
    for name in ("requirements-tpu-3.10.lock", "setup.py", "scripts/train.py"):
        if not (pathlib.Path(repository) / name).is_file():
            raise ValueError(f"repository must be this project, but {repository} has no {name}.")
    commit = git("rev-parse", "HEAD").stdout.strip()
    faults = []
    if changed := git("status", "--porcelain", "--untracked-files=no").stdout.splitlines():
        faults.append(
            "repository has changes that the last commit, which is copied, hasn't got. Commit "
            f"them: {' '.join(changed[:5])}"
        )
    inside = gin_file and "://" not in gin_file
    if inside and git("cat-file", "-e", f"{commit}:./{gin_file}").returncode:
        faults.append(
            "gin_file must be in the repository's last commit, which is copied. git add it and "
            f"commit; got {gin_file!r}."
        )
    for text in faults:
        if strict:
            raise ValueError(text)
        note(f"A launch would stop here: {text}")
    archive = pathlib.Path(found.stdout.strip()) / f"launch_tpu-{commit[:12]}.tar.gz"
    return Source(repository=repository, commit=commit, archive=str(archive))
