"""What the page's controls say, as a request has it: texts, checked and turned into values."""

import dataclasses
import re

from hamgan import choices
from hamgan.drawing import choice, interpolation

# Each value of psi and truncation has a program of its own, so they have few digits.
_NUMBER = re.compile(r"-?[0-9]{1,4}(\.[0-9]{0,4})?")
_LARGEST_SEED = 2**31 - 1
MOST_IMAGES = 16
MOST_STEPS = 32
MOST_PIXELS = 4
PSI = (0.0, 2.0)
TRUNCATION = (0.01, 10.0)
NETWORKS = ("generator", "discriminator")
# Standing statistics and moving averages belong to an image alone; the moments of a batch do not.
BATCH_NORMS = ("moving_averages", "standing_statistics")


class Refused(ValueError):
    """A control's value that can't be; the message is for the person at the page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """What there is to choose from.

    Attributes:
      names: of the classes, by label.
      weights: which of `choices.WEIGHTS` the checkpoint holds, the default first.
      networks: which of NETWORKS have a ham to look at.
    """

    names: tuple
    weights: tuple
    networks: tuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What a sampler is made for: as the flags of `scripts/sample.py` of the same names."""

    weights: str
    batch_norm: str
    truncation: float | None = None
    psi: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """`count` images of a class, of `seed` and those that follow."""

    look: Look
    label: int
    seed: int
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """Images on the way from a class and a seed to another seed (`way` 'seeds') or another class
    ('classes'); `end` is that seed or label.
    """

    look: Look
    label: int
    seed: int
    way: str
    end: int
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ham:
    """What the ham of a network finds in an image, with the codes of some pixels."""

    look: Look
    label: int
    seed: int
    network: str
    pixels: tuple


def images(pairs, offer):
    """The `Images` of a request.

    Args:
      pairs: [(name, text)] of the query.
      offer: the `Offer`.

    Raises:
      Refused: a name that isn't known or stands twice, or a value that can't be.
    """
    asked = _Asked(pairs, offer, more=("count",))
    found = Images(count=asked.whole("count", 1, 1, MOST_IMAGES), **asked.image())
    if found.seed + found.count - 1 > _LARGEST_SEED:
        raise Refused(f"seed and count go beyond the last seed, {_LARGEST_SEED}.")
    return found


def way(pairs, offer):
    """The `Way` of a request; arguments and errors as of `images`."""
    asked = _Asked(pairs, offer, more=("way", "to_seed", "to_class", "steps"))
    image = asked.image()
    kind = asked.one_of("way", interpolation.WAYS, "seeds")
    other = {"seeds": "to_seed", "classes": "to_class"}[kind]
    end = asked.seed(other) if kind == "seeds" else asked.label(other)
    if end == image["seed" if kind == "seeds" else "label"]:
        raise Refused(f"{other} must be another one than the way begins with.")
    return Way(way=kind, end=end, steps=asked.whole("steps", 8, 1, MOST_STEPS), **image)


def ham(pairs, offer):
    """The `Ham` of a request; arguments and errors as of `images`."""
    asked = _Asked(pairs, offer, more=("network", "pixels"))
    if not offer.networks:
        raise Refused("No network of this checkpoint has a ham to look at.")
    return Ham(
        network=asked.one_of("network", offer.networks, offer.networks[0]),
        pixels=asked.pixels("pixels"),
        **asked.image(),
    )


class _Asked:
    """A query's texts by name, and how each is read."""

    _COMMON = ("class", "seed", "psi", "truncation", "weights", "batch_norm")

    def __init__(self, pairs, offer, *, more):
        self._offer = offer
        self._texts = {}
        known = (*self._COMMON, *more)
        for name, text in pairs:
            if name not in known:
                raise Refused(f"There is no control {name[:40]!r}, only {', '.join(known)}.")
            if name in self._texts:
                raise Refused(f"{name} is given twice.")
            if len(text) > 200:
                raise Refused(f"{name} has {len(text)} characters, at most 200 are taken.")
            self._texts[name] = text.strip()

    def image(self):
        """What all pictures have: look, label and seed."""
        weights = self.one_of("weights", self._offer.weights, self._offer.weights[0])
        look = Look(
            weights=weights,
            batch_norm=self.one_of("batch_norm", BATCH_NORMS, choices.BATCH_NORM_OF[weights]),
            truncation=self.number("truncation", None, *TRUNCATION),
            psi=self.number("psi", 1.0, *PSI),
        )
        return dict(look=look, label=self.label("class"), seed=self.seed("seed"))

    def one_of(self, name, values, default):
        text = self._texts.get(name) or default
        if text not in values:
            raise Refused(f"{name} must be one of {', '.join(values)}, got {text!r}.")
        return text

    def number(self, name, default, least, most):
        text = self._texts.get(name)
        if not text:
            return default
        if not _NUMBER.fullmatch(text) or not least <= float(text) <= most:
            raise Refused(
                f"{name} must be a number from {least:g} to {most:g} with at most four digits "
                f"behind the point, got {text!r}."
            )
        return float(text)

    def whole(self, name, default, least, most):
        text = self._texts.get(name)
        if not text:
            return default
        if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise Refused(f"{name} must be a whole number from {least} to {most}, got {text!r}.")
        return int(text)

    def seed(self, name):
        return self.whole(name, 0, 0, _LARGEST_SEED)

    def label(self, name):
        """A class by its name, or as #3 by its number."""
        text = self._texts.get(name) or "#0"
        try:
            labels = choice.classes([text], self._offer.names)
        except ValueError as error:
            raise Refused(f"{name}: {error}") from None
        if len(labels) > 1:
            raise Refused(f"{name} must be one class, got {text!r}.")
        return labels[0]

    def pixels(self, name):
        """((row, column), ...) of '4:5, 8:8'; whether they are on the map is seen there."""
        texts = [text.strip() for text in self._texts.get(name, "").split(",") if text.strip()]
        matches = [re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text) for text in texts]
        if not all(matches) or len(matches) > MOST_PIXELS:
            raise Refused(
                f"{name} must be ROW:COLUMN, up to {MOST_PIXELS} with commas, got "
                f"{self._texts[name]!r}."
            )
        return tuple((int(match[1]), int(match[2])) for match in matches)
