"""Where each published array goes."""

import dataclasses

import tensorflow as tf

from hamgan.segmentation.published.naming import names, ours
from hamgan.segmentation.published.weights import IMAGENET, describe
from hamgan.segmentation.segmenter import Segmenter

_MAX_LINES = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """One line of an import.

    Attributes:
      ours: our variable; None: the array isn't needed.
      published: the array; None: the variable keeps its value.
      shape: the array's.
      note: what isn't plain from the names.
    """

    ours: str | None
    published: str | None
    shape: list | None = None
    note: str = ""

    def __str__(self):
        source = f"{self.published} {self.shape}" if self.published else "(nothing)"
        return f"{source} -> {self.ours or '(not needed)'}" + (
            f": {self.note}" if self.note else ""
        )


def plan(weights, variables):
    """Where each array goes and where each of our variables comes from.

    Args:
      weights: `Weights`.
      variables: {name: tf.Variable} of the network, or 'backbone/...' of a backbone alone.

    Returns:
      List of `Assignment`, one for each array, in the order of their names.

    Raises:
      ValueError: a name on either side is left over, or two differ in shape; all are listed.
    """
    described = describe(weights)
    published = names(weights, variables)
    sources = {theirs_: ours_ for ours_, theirs_ in published.items()}
    lines, assignments = [], []
    for name in sorted(weights.arrays):
        shape = weights.shape(name)
        note = _not_needed(name, described)
        if name not in sources and note is None:
            lines.append(f"  {name} {shape}: only in the file")
        if name not in sources:
            assignments.append(Assignment(ours=None, published=name, shape=shape, note=note or ""))
            continue
        variable = variables[sources[name]]
        wanted = variable.shape.as_list()
        value = ours(name, weights.arrays[name], wanted)
        if list(value.shape) != wanted:
            lines.append(
                f"  {name} {shape}: as {list(value.shape)} it doesn't fit {sources[name]}, {wanted}"
            )
        assignments.append(Assignment(ours=sources[name], published=name, shape=shape))
    lines += [
        f"  {our_name} {variables[our_name].shape.as_list()}: not in the file, where it is {name}"
        for our_name, name in published.items()
        if name not in weights.arrays
    ]
    if lines:
        more = f"\n  and {len(lines) - _MAX_LINES} more" if len(lines) > _MAX_LINES else ""
        raise ValueError(
            f"{weights.path} doesn't fit the network that it seems to be of ({described.family}, "
            f"{described.backbone}, {described.version or 'backbone alone'}):\n"
            + "\n".join(lines[:_MAX_LINES])
            + more
        )
    return assignments


def _not_needed(name, described):
    """Why an array isn't needed, None where it is."""
    if name.endswith(".num_batches_tracked"):
        return "a count that nothing uses"
    if described.family == IMAGENET and name.split(".")[0] in ("fc", "head"):
        return "ImageNet's classifier"
    return None


def assign(weights, assignments, variables):
    """Puts arrays into variables, as `plan` has it."""
    for assignment in assignments:
        if assignment.ours and assignment.published:
            variable = variables[assignment.ours]
            value = ours(
                assignment.published,
                weights.arrays[assignment.published],
                variable.shape.as_list(),
            )
            variable.assign(tf.cast(value, variable.dtype))


def named_variables(network):
    """{name: tf.Variable} of a `Segmenter`, or of a backbone alone under 'backbone/'."""
    variables = {}
    for variable in network.variables:
        name = variable.path
        if not isinstance(network, Segmenter):
            name = f"backbone/{name.removeprefix(network.name + '/')}"
        variables[name] = variable.value
    return variables
