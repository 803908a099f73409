"""Signs that a training has collapsed or is dead, and what to do about them."""

import numpy as np

# Host calls in a row after which a sign that can't be chance is one.
DEAD_CALLS = 3
# Losses of networks that learn are of the order of 1.
LOSS_BOUND = 1e4
NETWORKS = ("generator", "discriminator")


class Collapse(FloatingPointError):
    """Training has collapsed, and the schedule says to stop."""


def report(message):
    """On collapse: an event, and training goes on."""
    return False


def stop(message):
    """On collapse: an event, and training ends with an error."""
    raise Collapse(f"{message} The checkpoints stay as they were.")


def rollback(message):
    """On collapse: an event, and training goes on from the checkpoint with the best FID, with other
    random numbers.
    """
    return True


class Signs:
    """Looks at what each host call and each grid of samples gives.

    A saturated discriminator is a sign again every `schedule.collapse_calls` calls; the others are
    one when they begin.

    Args:
      schedule: a `hamgan.loop.Schedule`.
    """

    networks = NETWORKS

    def __init__(self, schedule):
        self._schedule = schedule
        self.forget()

    def forget(self):
        """After a rollback: the calls before it don't count."""
        self._saturated = 0
        self._dead = dict.fromkeys(self.networks, 0)
        self._unbound = dict.fromkeys(self.networks, 0)
        self._constant = False

    def in_metrics(self, metrics):
        """What is wrong by the means of a host call, as a sentence; None: nothing."""
        return self._saturation(metrics) or self._death(metrics)

    def _saturation(self, metrics):
        loss, real, fake = (
            metrics[name] for name in ("loss/discriminator", "logits/real", "logits/fake")
        )
        saturated = abs(loss) < self._schedule.collapse_loss or real < fake
        self._saturated = self._saturated + 1 if saturated else 0
        if self._saturated < self._schedule.collapse_calls:
            return None
        self._saturated = 0
        return (
            f"The discriminator was saturated for {self._schedule.collapse_calls} host calls in a "
            f"row: loss {loss:.4g}, mean output {real:.4g} on real and {fake:.4g} on generated "
            "images."
        )

    def _death(self, metrics):
        found = None
        for network in self.networks:
            loss = metrics[f"loss/{network}"]
            # Exactly 0: no rounding gives that to a network that learns.
            dead = metrics.get(f"gradient_norm/{network}") == 0.0
            self._dead[network] = self._dead[network] + 1 if dead else 0
            self._unbound[network] = self._unbound[network] + 1 if abs(loss) > LOSS_BOUND else 0
            if self._dead[network] == DEAD_CALLS:
                found = (
                    f"The {network}'s gradient was exactly 0 for {DEAD_CALLS} host calls in a "
                    f"row (loss {loss:.4g}): it doesn't learn any more. Try a smaller learning "
                    "rate."
                )
            elif self._unbound[network] == DEAD_CALLS:
                found = (
                    f"The {network}'s loss was above {LOSS_BOUND:g} for {DEAD_CALLS} host calls "
                    f"in a row, {loss:.4g} now. Try a smaller learning rate."
                )
        return found

    def in_images(self, images):
        """What is wrong by a grid of samples [N, S, S, 3] in [-1, 1], as a sentence; None:
        nothing.
        """
        constant = float(np.ptp(images, axis=0).max()) < 1 / 127.5  # less than a grey level
        begins, self._constant = constant and not self._constant, constant
        if not begins:
            return None
        return f"All {len(images)} samples of the grid are the same image: the output is constant."


class SignsOfDeath(Signs):
    """What any network can show, not only GANs: gradients of exactly 0, a loss without bounds."""

    networks = ("network",)

    def _saturation(self, metrics):
        return None

    def in_images(self, images):
        """None: what is drawn says nothing here."""
        return None
