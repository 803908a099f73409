"""The host loop: many device steps per call, then whatever is due - checkpoints, scalars, samples,
evaluation.
"""

import contextlib
import os
import sys
import time
from typing import NamedTuple

from tqdm import tqdm

from hamgan import distribution, grids, watching
from hamgan.collapse import Collapse, Signs, report, rollback, stop
from hamgan.evaluation.scores import HEADLINE
from hamgan.profiling import Profile
from hamgan.run import checkpoints, class_names, contents, lock, records
from hamgan.run.folder import Folder
from hamgan.run.log import SCREEN, Log, surviving_failed_writes
from hamgan.signals import Interruption
from hamgan.timetable import Schedule

# With the schedule and the policies of `hamgan.collapse`, which gin files name as the loop's.
__all__ = ["Collapse", "Ended", "Schedule", "report", "rollback", "stop", "train"]


class Ended(NamedTuple):
    """How `train` ended."""

    checkpoint: str
    stopped: bool


def train(
    *,
    trainer,
    dataset,
    schedule,
    model_dir,
    evaluator=None,
    grid=None,
    progress=True,
    profile=None,
    identity=None,
    headline=HEADLINE,
    signs=Signs,
    status=watching.losses_of_gan,
    sinks=(),
):
    """Trains until `schedule.num_steps`, from the newest checkpoint in `model_dir` if there is one.

    SIGTERM or Ctrl-C ends it early: after the host call that is running, or at once during an
    evaluation, it saves and returns. With several hosts all call it, with one `model_dir` that all
    can read; one of them writes.

    Args:
      trainer: a `hamgan.trainer.Trainer`, or another `device_loop.DeviceLoop`.
      dataset: a `hamgan.data.ImageDataset`, or what else the trainer takes batches from.
      schedule: a `Schedule`.
      model_dir: the run's folder.
      evaluator: a `hamgan.evaluation.runner.Evaluator` of the trainer's generator; None: no
        evaluation.
      grid: the `grids.SampleGrid` that is drawn, or what else has its methods; None: one of the
        trainer's generator.
      progress: draw a progress bar.
      profile: (start, stop), steps between which a TensorFlow profile is written into model_dir;
        None: no profile.
      identity: the `hamgan.run.identity.Identity` of the run, which its checkpoints keep and by
        which another one is refused; None: neither.
      headline: the `scores.Score` that chooses the best checkpoint.
      signs: constructor of the signs of a collapse, called with the schedule.
      status: function (metrics of a host call) -> {name: text} for the progress bar.
      sinks: functions (model_dir) -> `hamgan.run.sinks.Sink` of where records go too.

    Returns:
      Ended(checkpoint: the path of the last one, whose name tells where training ended; stopped:
        whether a signal ended it).

    Raises:
      FloatingPointError: something wasn't finite more than `schedule.max_rollbacks` times; the
        message names what and the step. The checkpoints stay as they were.
      ValueError: the folder holds another run, or records of one whose checkpoints are gone.
      lock.Held: another process trains in this folder.
      lock.Lost: another process took it over.
      Collapse: training has collapsed, with `schedule.on_collapse = stop`.
      checkpoints.NotSaved: the first or the last checkpoint couldn't be written.
      distribution.HostLost: another host of the cluster is gone.
    """
    model_dir = checkpoints.whole_path(model_dir)
    writes = distribution.is_chief(trainer.strategy)
    alone = lock.writing(model_dir) if writes else contextlib.nullcontext()
    hosts = distribution.naming_lost_hosts(trainer.strategy)
    with alone as held, Interruption() as interruption, hosts:
        run = _Run(
            trainer=trainer,
            dataset=dataset,
            schedule=schedule,
            model_dir=model_dir,
            evaluator=evaluator,
            grid=grid,
            progress=progress,
            profile=profile,
            interruption=interruption,
            identity=identity,
            held=held,
            headline=headline,
            signs=signs,
            status=status,
            sinks=sinks,
        )
        with run.bar, run.profile:
            try:
                run.train()
            except Exception:
                run.end_saving()
                raise
            finally:
                run.saved.cancel()
    return Ended(run.path, run.stopped)


class _Run:
    """The state of `train`."""

    def __init__(
        self,
        *,
        trainer,
        dataset,
        schedule,
        model_dir,
        evaluator,
        grid,
        progress,
        profile,
        interruption,
        identity,
        held,
        headline,
        signs,
        status,
        sinks,
    ):
        self.trainer = trainer
        self.dataset = dataset
        self.schedule = schedule
        self.model_dir = model_dir
        self.folder = Folder(model_dir)
        self.evaluator = evaluator
        self.headline = headline
        self.status_of = status
        self.interruption = interruption
        self.writes = distribution.is_chief(trainer.strategy)
        self.log = Log(model_dir, writes=self.writes, sinks=sinks)
        self.settings = identity.settings if identity else {}
        self.variables = trainer.variables()
        self.saved = checkpoints.Checkpoints(
            self.folder.checkpoints,
            self.variables,
            max_to_keep=schedule.max_to_keep,
            best=self.best_steps,
            seed=trainer.seed,
            identity=identity,
            writes=self.writes,
            check=held.check if held is not None else lambda: None,
            report=lambda message: self.announce("checkpoint trouble", message=message),
        )
        self.grid = grid or grids.SampleGrid(
            trainer.generator, strategy=trainer.strategy, class_names=dataset.class_names
        )
        self.batches = None
        self.clock = None  # (step, time) from which the time that is left is estimated
        self.signs = signs(schedule)
        self.profile = Profile(
            profile if self.writes else None, schedule.num_steps, model_dir, self.announce
        )
        self.status = {}
        self.stopped = False
        self.step = 0
        self.set_damaged_records_aside()
        checkpoints.check_run(model_dir, identity)
        self.follow_restored(self.saved.restore_latest())
        self.bar = tqdm(
            total=schedule.num_steps,
            initial=self.step,
            unit="step",
            file=SCREEN,
            disable=not progress or not self.writes,
            mininterval=0.5 if sys.stderr.isatty() else 15,
            dynamic_ncols=True,
        )

    def train(self):
        if self.path is None:
            if self.writes:
                class_names.write(self.model_dir, self.dataset.class_names)
                self.grid.draw_real(self.folder.real_images, self.dataset)
            self.save()
        else:
            self.announce("resumed", checkpoint=self.path, message=f"Going on from {self.path}")
            self.mark_abandoned()
            # A run saves no such checkpoint; one may come from elsewhere.
            if name := contents.first_not_finite(self.variables):
                self.roll_back(f"{name} isn't finite in {self.path}.", first_bad=name)
        self.log.show_configuration(self.step)
        self.log.show_settings(self.settings)
        # Of a run that goes on too: it may have ended between a checkpoint and its evaluation.
        self.sample_and_evaluate()
        while not self.is_to_stop() and self.step < self.schedule.num_steps:
            num_steps = self.begin_call()
            start = time.monotonic()
            metrics = self.trainer.train_steps(self.batches, num_steps)
            if self.end_call(metrics, num_steps, time.monotonic() - start):
                # What is evaluated is saved first: a record names a checkpoint that exists.
                if self.step == self.schedule.num_steps:
                    self.save(must=True)
                elif self.evaluator and self.is_due(self.schedule.evaluate_every):
                    self.save()
                elif self.is_due(self.schedule.save_every):
                    self.save(beside=True)
                self.sample_and_evaluate()
        if self.is_to_stop():
            self.save(must=True)
            by = self.interruption.signal or "another host"
            self.announce("stopped", message=f"by {by}, saved {self.path}")
            self.stopped = True
            return
        self.draw_grid(self.folder.samples)

    def best_steps(self):
        return self.log.history().steps_to_keep(
            self.headline.name, self.schedule.keep_best, better=self.headline.better
        )

    def mark_abandoned(self):
        """Says which steps an end between two checkpoints has left: they are trained again."""
        last = self.log.history().last_step()
        if last > self.step:
            self.announce(
                "abandoned",
                message=f"the steps {self.step + 1:,} to {last:,} weren't saved; trained again",
                **{"from": self.step + 1, "to": last},
            )

    def set_damaged_records_aside(self):
        damaged = []
        if self.writes:
            with surviving_failed_writes(os.path.basename(self.folder.metrics)):
                damaged = records.set_damage_aside(self.folder.metrics)
        for number, line in damaged:
            self.announce(
                "damaged record",
                message=f"line {number} of {self.folder.metrics} is no record, {line!r}: it was "
                f"set aside in {self.folder.metrics}.damaged",
            )

    def is_due(self, period):
        return self.step % period == 0 or self.step == self.schedule.num_steps

    def is_to_stop(self):
        return any(
            distribution.of_hosts(self.trainer.strategy, int(self.interruption.signal is not None))
        )

    def announce(self, event, *, step=None, message, **details):
        """An event for the log, and a line for a person."""
        step = self.step if step is None else step
        self.log.write(
            {"kind": "event", "step": step, "event": event, "message": message, **details}
        )
        if self.writes:
            tqdm.write(f"Step {step:,}, {event}: {message}", file=SCREEN)

    def follow_restored(self, path):
        """After the variables were read from a checkpoint (None: there was none)."""
        self.path = path
        self.step = int(self.trainer.step.numpy())
        self.saved_step = None if path is None else self.step
        steps = distribution.of_hosts(self.trainer.strategy, self.step)
        if len(set(steps)) > 1:
            raise ValueError(
                f"The hosts have read checkpoints of different steps, {steps}: model_dir "
                f"({self.model_dir}) must be a folder that all hosts share, like gs://BUCKET/RUN."
            )

    def save(self, *, must=False, beside=False):
        """Saves this step, unless it is; a failure is an error if nothing was saved yet, or if it
        `must` be. `beside`: training goes on while it is written.
        """
        self.finish_saving()
        if self.saved_step == self.step:
            return
        name = contents.first_not_finite(self.variables)
        if name:
            self.roll_back(f"{name} isn't finite.", first_bad=name)
            return
        try:
            if beside:
                self.saved.begin()
            else:
                self.path, self.saved_step = self.saved.save(), self.step
        except checkpoints.NotSaved as error:
            if must or self.path is None:
                raise
            self.announce_not_saved(error, self.step)

    def finish_saving(self, *, wait=True):
        """Follows the checkpoint that is being written, if there is one."""
        if not self.saved.begun or not (wait or self.saved.is_written):
            return
        step = checkpoints.step_of(self.saved.begun)
        try:
            self.path, self.saved_step = self.saved.finish(), step
        except checkpoints.NotSaved as error:
            self.announce_not_saved(error, step)

    def end_saving(self):
        """Waits for it after an error, which nothing that happens here may hide."""
        if not self.saved.begun:
            return
        step = checkpoints.step_of(self.saved.begun)
        try:
            self.saved.finish()
        except lock.Lost:  # the records are another's too
            pass
        except Exception as error:
            with contextlib.suppress(Exception):
                self.announce("checkpoint not saved", step=step, message=str(error))

    def announce_not_saved(self, error, step):
        self.announce(
            "checkpoint not saved",
            step=step,
            message=f"{error}\nTraining goes on; the last good one is {self.path}.",
        )

    def begin_call(self):
        """How many steps the next host call takes."""
        if self.batches is None:
            self.batches = watching.TimedBatches.of(self.trainer.batches(self.dataset))
        self.profile.follow(self.step)
        return self.schedule.steps_until_due(self.step, self.profile.steps)

    def end_call(self, metrics, num_steps, seconds):
        """After a host call; returns whether training is further than before (and not rolled
        back).
        """
        self.step += num_steps
        self.finish_saving(wait=False)
        self.profile.follow(self.step)
        first_bad_step = int(metrics.pop("first_bad_step"))
        first_bad = metrics.pop("first_bad", "the loss")
        if first_bad_step >= 0:
            means = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            steps = f"steps {self.step - num_steps + 1} to {self.step}"
            self.roll_back(
                f"{first_bad} wasn't finite at step {first_bad_step} ({steps}, means: {means}).",
                step=first_bad_step,
                first_bad=first_bad,
                **metrics,
            )
            return False
        if self.clock is None:
            self.clock = self.step, time.monotonic()  # after the first call, which traced the step
        done, passed = self.step - self.clock[0], time.monotonic() - self.clock[1]
        waiting = self.batches.waited() / seconds
        self.log.write(
            {
                "kind": "train",
                "step": self.step,
                **metrics,
                **self.trainer.gates(),
                "images_per_second": self.trainer.batch_size * num_steps / seconds,
                "input_wait_percent": 100 * waiting,
                **watching.memory(),
                **(
                    {"eta_seconds": passed / done * (self.schedule.num_steps - self.step)}
                    if done
                    else {}
                ),
            }
        )
        self.show(num_steps, **self.status_of(metrics), input_wait=f"{waiting:.0%}")
        return not self.has_collapsed(self.signs.in_metrics(metrics))

    def show(self, num_steps=0, **status):
        self.status.update(status)
        self.bar.set_postfix(self.status, refresh=False)
        self.bar.update(num_steps)

    def sample_and_evaluate(self):
        if self.is_due(self.schedule.sample_every):
            path = self.folder.grid(self.step)
            images = self.draw_grid(path, title=f"step {self.step:,}")
            self.log.show_picture(self.step, path)
            if self.step and self.has_collapsed(self.signs.in_images(images)):
                return
        if (
            self.evaluator
            and self.is_due(self.schedule.evaluate_every)
            and self.of_chief(int(self.is_to_be_evaluated()))
            and not self.is_to_stop()
        ):
            # Several hosts can't leave each other alone in the middle of an evaluation.
            alone = distribution.num_hosts(self.trainer.strategy) == 1
            record = None
            with self.interruption.at_once() if alone else contextlib.nullcontext():
                record = self.evaluator.evaluate(checkpoint=self.path, step=self.step)
            if record is None:
                return
            self.log.write(record)
            score = record[self.headline.name]
            self.show(**{self.headline.short: f"{score:.2f}"})
            self.collapsed_by_score(score)

    def is_to_be_evaluated(self):
        fingerprint = getattr(self.evaluator, "description", {}).get("fingerprint")
        return self.saved_step == self.step and not self.log.history().is_evaluated(
            step=self.step, digest=contents.digest(self.path), fingerprint=fingerprint
        )

    def draw_grid(self, path, *, title=None):
        images = self.grid.images()
        if self.writes:
            with surviving_failed_writes(os.path.basename(path)):
                self.grid.save(path, images, title=title)
        return images

    def of_chief(self, value):
        """A number as the host that writes has it: hosts must not decide differently."""
        return distribution.of_hosts(self.trainer.strategy, value)[0]

    def roll_back(self, reason, *, step=None, path=None, **details):
        """Goes on from a checkpoint (None: the newest) with other random numbers, or stops if that
        was done enough.
        """
        self.finish_saving()
        # Other hosts look for the newest checkpoint when it's there.
        distribution.of_hosts(self.trainer.strategy, self.step)
        count = int(self.trainer.rollbacks.numpy())
        step = self.step if step is None else step
        if count >= self.schedule.max_rollbacks:
            self.announce("gave up", step=step, message=reason, rollbacks=count, **details)
            raise FloatingPointError(
                f"{reason} After {count} rollbacks this run stops; the last good checkpoint is "
                f"{self.path}. Try a smaller learning rate, or another seed of the trainer in a "
                "new --model_dir."
            )
        if path is None:
            path = self.saved.newest_finite()
        self.saved.restore(path)
        self.trainer.rollbacks.assign(count + 1)
        self.follow_restored(path)
        self.batches, self.clock = None, None
        self.signs.forget()
        details["rollbacks"] = count + 1
        self.announce(
            "rolled back", step=step, message=reason, to=self.step, checkpoint=path, **details
        )
        self.bar.n = self.step
        self.bar.refresh()

    def has_collapsed(self, message):
        """Whether the run went back because of what is wrong; None: nothing is."""
        return message is not None and self.collapse(message)

    def collapsed_by_score(self, score):
        """Compares with the best one so far; returns whether the run went back."""
        headline, factor = self.headline, self.schedule.collapse_factor
        best = headline.best(self.log.history().scores(headline.name).values(), default=score)
        lower = headline.better == "lower"
        if factor is None:
            return False
        much_worse = score > factor * best if lower else factor * score < best
        if not self.of_chief(int(much_worse)):
            return False
        more, times = ("more", f"{factor:g} times") if lower else ("less", f"1/{factor:g} of")
        return self.collapse(
            f"{headline.title} {score:.4g} is {more} than {times} the best of this run, {best:.4g}."
        )

    def collapse(self, message):
        self.announce("collapse", message=message)
        if not self.schedule.on_collapse(message):
            return False
        self.finish_saving()  # which may delete others
        headline = self.headline
        there = {checkpoints.step_of(name) for name in checkpoints.available(self.model_dir)}
        best = self.log.history().best_steps(headline.name, 1, better=headline.better)
        best = next((step for step in best if step < self.step and step in there), -1)
        best = self.of_chief(best)
        path = checkpoints.find(self.model_dir, checkpoints.name_of(best)) if best >= 0 else None
        self.roll_back(message, path=path)
        return True
