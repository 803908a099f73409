"""A request for a TPU, through the `gcloud` command.

TPUs are had through queued resources (cloud.google.com/tpu/docs/queued-resources): a request waits,
is provisioned, is active, and is suspended when a spot machine is taken away; then it can only be
deleted and made again. Python's own library is all this needs.
"""

import json
import shlex
import time

from hamgan.tpu.gcloud import note

# What becomes another state by itself, and what has to be deleted before it can be made again.
WAITING = (
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "CREATING",
    "PROVISIONING",
    "SUSPENDING",
    "DELETING",
)
GONE = ("SUSPENDED", "FAILED")
# Of a request of which gcloud doesn't say it.
UNKNOWN = "UNKNOWN"
DAY = 24 * 3600.0  # seconds
_QUEUE = ("compute", "tpus", "queued-resources")
# What is read of gcloud's description, where it is there, and its kind.
_PARTS = {
    ("state",): dict,
    ("state", "state"): str,
    ("createTime",): str,
    ("tpu",): dict,
    ("tpu", "nodeSpec"): list,
    ("tpu", "nodeSpec", 0): dict,
    ("tpu", "nodeSpec", 0, "node"): dict,
    ("tpu", "nodeSpec", 0, "node", "acceleratorType"): str,
    ("spot",): dict,
    ("guaranteed",): dict,
    ("guaranteed", "reserved"): bool,
    ("reservationName",): str,
    ("provisioningModel",): str,
}


class Deleted(ValueError):
    """The request was deleted, by somebody else: it isn't made again."""


class Queued:
    """One request, and the TPU that it becomes.

    Args:
      place: a `Place`.
      run: a `Runner`, or what takes its place.
      sleep: waits so many seconds.
      clock: seconds from some moment on.
    """

    def __init__(self, place, *, run, sleep=time.sleep, clock=time.monotonic):
        self.place, self.run, self._sleep, self._clock = place, run, sleep, clock
        self._owed = False

    @property
    def dry_run(self):
        return getattr(self.run, "dry_run", False)

    def found(self):
        """gcloud's description of the request, a dictionary; None when there is none.

        Raises:
          ValueError: gcloud can't say, or not so that it is understood.
        """
        result = self.run([*self.describe_words(), "--format=json"], capture=True)
        if self.dry_run or result.status and "NOT_FOUND" in result.errors:
            return None
        if result.status:
            raise ValueError(
                f"gcloud can't say whether there is a {self.place.name} in {self.place.zone}: "
                f"{result.errors.strip()} Check zone and project, and run: gcloud auth login"
            )
        try:
            return description_of(result.output)
        except ValueError as error:
            raise ValueError(f"{error} {self._by_hand()}") from None

    def state(self):
        """State of the request, None when there is none.

        Raises:
          ValueError: as `found`; or it is one that nothing is known about.
        """
        return self._known(self.found())

    def _known(self, found):
        state = state_of(found)
        if state not in (None, "ACTIVE", *WAITING, *GONE):
            raise ValueError(
                f"{self.place.name} is {state!r}, which nothing is known about. {self._by_hand()}"
            )
        return state

    def _by_hand(self):
        return f"See for yourself: {shlex.join(self.describe_words())}"

    def kind(self, found):
        """The accelerator type of what `found` gave; what was asked for, where it isn't said."""
        return _part(found, "tpu", "nodeSpec", 0, "node", "acceleratorType") or self.place.type

    def tier(self, found):
        """Likewise its tier, one of `request.TIERS`."""
        if found.get("spot") is not None:
            return "spot"
        if _part(found, "guaranteed", "reserved") or found.get("reservationName"):
            return "reserved"
        if found.get("provisioningModel") == "FLEX_START":  # of the alpha track alone
            return "flex_start"
        # Without that track, flex-start looks as on demand does.
        return (
            "on_demand" if "tpu" in found and self.place.tier != "flex_start" else self.place.tier
        )

    def check(self, found):
        """Refuses what is there but isn't what was asked for: made again, it would be another.

        Args:
          found: what `found` gave.

        Raises:
          ValueError: it is of another type or tier.
        """
        kind, tier = self.kind(found), self.tier(found)
        name, place = self.place.name, self.place
        if kind != place.type:
            raise ValueError(
                f"{name} is a {kind}, and --type says {place.type}. Give --type={kind}, or another "
                "--name."
            )
        if tier != place.tier:
            wanted = "no tier" if tier == "on_demand" else f"--{tier}"
            raise ValueError(
                f"{name} was asked for as {tier}, and would be made again as {place.tier}. Give "
                f"{wanted}, or another --name."
            )

    def describe_words(self):
        return ["gcloud", *_QUEUE, "describe", self.place.name, *self.place.where]

    def create_words(self):
        """The words of the request."""
        place = self.place
        flex = place.tier == "flex_start"
        # What only the alpha track has: https://cloud.google.com/tpu/docs/request-using-flex-start
        words = ["gcloud", *(["alpha"] if flex else []), *_QUEUE, "create", place.name]
        words += [f"--node-id={place.name}", *place.where, f"--accelerator-type={place.type}"]
        words += [f"--runtime-version={place.runtime_version or place.machine.chip.image}"]
        # For buckets; without it a VM may read them only.
        words += ["--scopes=https://www.googleapis.com/auth/cloud-platform"]
        if flex:
            duration = f"--max-run-duration={place.duration}"
            words += ["--provisioning-model=flex-start", duration]
        elif place.tier != "on_demand":
            words += [f"--{place.tier}"]
        return words

    def delete_words(self):
        words = ["gcloud", *_QUEUE, "delete", self.place.name, *self.place.where]
        return [*words, "--force", "--quiet"]

    def up(self, *, poll=30.0, timeout=None, failures=3, patience=DAY, ask=True):
        """Asks for the TPU and waits until it is there; makes again what was taken away.

        What is there is used. Called again it goes on.

        Args:
          poll: seconds between looks.
          timeout: seconds, after which waiting ends and the request stays; None: never.
          failures: of requests; after so many no more is made.
          patience: seconds of looks without an answer, after which this ends.
          ask: make a request where there is none.

        Raises:
          Deleted: there is none any more.
          ValueError: what is there is another, a command failed, the time is over.
        """
        found, start, shown, silent = self.found(), self._clock(), None, 0
        # Deleted by this, to be made again: it isn't somebody else's deletion.
        ask = ask or self._owed
        if self.dry_run:
            note("The next runs only if the one above finds no request:")
            self._checked(self.create_words())
            return
        state = self._known(found)
        if found is not None:
            self.check(found)
        while state != "ACTIVE":
            if state in GONE:
                failures -= state == "FAILED"
                if failures < 1:
                    raise ValueError(
                        f"{self.place.name} is FAILED again. Why: "
                        f"{shlex.join(self.describe_words())}"
                    )
                note(f"{self.place.name} is {state}: it is deleted and made again.")
                self._checked(self.delete_words())
                state, ask, self._owed = None, True, True
            if state in (None, "DELETING") and not ask:
                raise Deleted(
                    f"{self.place.name} was deleted. If its training wasn't over, up, install and "
                    "train go on from the newest checkpoint."
                )
            if state is None:
                self._checked(self.create_words())
                # Once: what is deleted from now on is deleted by somebody else.
                state, ask, self._owed = "CREATING", False, False
            waited = self._clock() - start
            if timeout is not None and waited >= timeout:
                raise ValueError(
                    f"{self.place.name} is {state} after {waited:.0f} s. The request stays; the "
                    f"same command goes on. To give it up: {shlex.join(self.delete_words())}"
                )
            self._sleep(poll if timeout is None else min(poll, timeout - waited))
            try:
                state, silent = self.state(), 0
            except ValueError as error:
                silent += 1
                if silent * poll >= patience:
                    raise
                self._note_silence(silent, error)
            if state != shown:
                note(f"{time.strftime('%H:%M:%S')} {self.place.name}: {state}")
                shown = state

    def down(self, *, ask=input):
        """Deletes the TPU, after a question. Returns whether there is none any more.

        Args:
          ask: function question -> answer; None: no question.

        Raises:
          ValueError: there is nobody to answer.
        """
        if not self.dry_run:
            found = self.found()
            if found is None:
                note(f"There is no {self.place.name} in {self.place.zone}.")
                return True
            question = f"Delete {self.place.name} ({self.kind(found)}) in {self.place.zone}? [y/N] "
            try:
                answer = "y" if ask is None else ask(question)
            except EOFError:
                raise ValueError(
                    "down asks before it deletes, and nobody answers here: give --yes."
                ) from None
            if answer.strip().lower() not in ("y", "yes"):
                note("It stays, and costs money.")
                return False
        self._checked(self.delete_words())
        return True

    def _note_silence(self, looks, fault):
        """Says what is wrong, at first and once in a while."""
        if looks % 10 == 1:
            note(f"{time.strftime('%H:%M:%S')} no answer, {looks} in a row; it goes on. {fault}")

    def _checked(self, words, *, capture=False):
        result = self.run(words, capture=capture)
        if result.status:
            raise ValueError(
                f"This command ended with status {result.status}: {shlex.join(words)}\n"
                f"{result.errors.strip()}\nThe same command goes on when the cause is gone: what "
                "is done is used. If there is a VM now, it costs money; delete it: "
                f"{shlex.join(self.delete_words())}"
            )
        return result


def description_of(text):
    """The dictionary of gcloud's JSON.

    Raises:
      ValueError: it isn't one, or a part that is read has another kind.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"gcloud's description must be JSON of a request, got {text[:80]!r}.")
    for path, kind in _PARTS.items():
        value = _part(found, *path)
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f"gcloud's description must have a {kind.__name__} as {'.'.join(map(str, path))}, "
                f"got {str(value)[:80]!r}."
            )
    return found


def _part(found, *path):
    """What stands at a path of names and positions; None where nothing does."""
    for step in path:
        if not found:
            return None
        found = found[step] if isinstance(found, list) else found.get(step)
    return found


def state_of(found):
    """The state of a request, UNKNOWN where it isn't said; None where there is no request."""
    return None if found is None else _part(found, "state", "state") or UNKNOWN
