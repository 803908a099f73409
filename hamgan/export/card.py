"""The model card of an export, with the metadata that Hugging Face's hub reads."""

import json

from hamgan.evaluation import scores, summary
from hamgan.run.history import History, is_number, latest

_TAGS = ("gan", "image-generation", "class-conditional", "matrix-decomposition", "hamgan")


def evaluations_of(metrics, *, checkpoint, weights, generator):
    """The evaluations of an exported generator, one for each protocol and seed, the newest last.

    Args:
      metrics: path of the run's metrics.jsonl.
      checkpoint: digest of the checkpoint.
      weights: 'raw' or 'ema'.
      generator: digest of the generator's settings; records of versions without it count.
    """
    wanted = {"checkpoint_digest": checkpoint, "weights": weights}
    return latest(
        record
        for record in History(metrics).of_kind("evaluation")
        if all(record.get(key) == value for key, value in wanted.items())
        and record.get("generator", {}).get("digest", generator) == generator
    )


def data_of(identity, evaluations):
    """What is known of the images a network was trained on, as `ImageDataset.identity` has it.

    Args:
      identity: the checkpoint's `hamgan.run.identity.Identity` or None.
      evaluations: records; what they were compared with, where the checkpoint knows nothing.
    """
    if identity and identity.data:
        return dict(identity.data)
    for record in reversed(evaluations):
        reference = record.get("reference", {})
        if reference.get("dataset"):
            return {"name": reference["dataset"], "version": reference.get("version")}
    return {}


def source_of(info, data):
    """Whose the images are, as far as TFDS's description of the data set says it.

    Args:
      info: `tfds.core.DatasetInfo`, or None where the data set isn't here.
      data: what is known of the images a network was trained on: `data_of`.

    Returns:
      {'licence', 'homepage' or 'citation': a line}; nothing where `info` is of another data set, or
      of another version of it.
    """
    if info is None or (info.name, str(info.version)) != (data.get("name"), data.get("version")):
        return {}
    found = {
        "licence": info.redistribution_info.license,
        "homepage": info.homepage,
        "citation": info.citation,
    }
    return {name: " ".join(text.split()) for name, text in found.items() if text}


def metadata(*, title, evaluations, data, licence):
    """The card's head: {key: value} as the hub's metadata format has it.

    Without `datasets`, which are the hub's: TFDS's names aren't.
    """
    dataset = data.get("name") or "unknown"
    results = [
        {
            "task": {"type": "unconditional-image-generation", "name": "Image generation"},
            "dataset": {
                "name": f"{dataset}, {record.get('protocol', {}).get('words', '')}",
                "type": dataset,
            },
            "metrics": [
                {"type": score.name, "value": record[score.name], "name": score.title}
                for score in scores.SCORES
                if is_number(record.get(score.name))
            ],
        }
        for record in evaluations
    ]
    head = {
        "license": licence or "other",
        "library_name": "keras",
        "pipeline_tag": "unconditional-image-generation",
        "tags": list(_TAGS),
    }
    if results:
        head["model-index"] = [{"name": title, "results": results}]
    return head


def card(*, title, facts, evaluations, data, source, class_names, licence, files):
    """The text of README.md.

    Args:
      title: a line.
      facts: {name: text} of the network and its checkpoint.
      evaluations: records of `evaluations_of`.
      data: what is known of the images, `ImageDataset.identity()`.
      source: whose they are, `source_of`.
      class_names: by label.
      licence: SPDX identifier of the weights' licence; None: none was given.
      files: {file's name: what it is}.

    Returns:
      Markdown, behind the metadata. (JSON is YAML too.)
    """
    head = metadata(title=title, evaluations=evaluations, data=data, licence=licence)
    lines = ["---"]
    lines += [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    lines += ["---", "", f"# {title}", "", "![samples](samples.png)", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts.items()), ""]
    lines += ["## Scores", "", *_scores(evaluations), ""]
    lines += ["## Data and licence", ""]
    lines += [f"- {name}: {value}" for name, value in data.items()] or ["- unknown"]
    lines += [f"- {name} of the images: {text}" for name, text in source.items()]
    if "licence" not in source:
        lines.append("- No licence of the images is known here: ask whoever made the data set.")
    lines.append(
        f"- licence of the weights: {licence}"
        if licence
        else "- No licence was given for these weights: ask whoever trained them."
    )
    lines += ["", f"{len(class_names)} classes: {_shortened(class_names)}", ""]
    lines += ["## Files", "", *(f"- `{name}`: {text}" for name, text in files.items()), ""]
    if "saved_model" in files:
        lines += _USE.format(name=json.dumps(class_names[0])).splitlines()
    return "\n".join(lines) + "\n"


def _shortened(names, most=50):
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _scores(evaluations):
    if not evaluations:
        return ["This checkpoint hasn't been evaluated."]
    lines = []
    for record in evaluations:
        protocol = record.get("protocol", {})
        lines += [
            f"Protocol {protocol.get('name', 'unknown')}: {protocol.get('words', 'unknown')}. "
            f"Features: {record.get('features', {}).get('handle', 'unknown')}. Seed "
            f"{record.get('seed', 'unknown')}.",
            "",
            "| score | value | interval of 95 % |",
            "|---|---|---|",
        ]
        for score in scores.SCORES:
            if is_number(record.get(score.name)):
                interval = record.get(f"{score.name}_interval")
                words = " to ".join(f"{end:.4g}" for end in interval) if interval else "–"
                lines.append(f"| {score.title} | {record[score.name]:.4g} | {words} |")
        if note := summary.of_own_features(record):
            lines += ["", note]
        if record.get("caution"):
            lines += ["", f"Caution: {record['caution']}"]
        lines.append("")
    lines.append("Scores of other protocols, or other features, can't be compared with these.")
    return lines


_USE = """## Use

```python
import tensorflow as tf

model = tf.saved_model.load("saved_model")
images = model.signatures["seed_name"](
    seed=tf.constant([7], tf.int64),
    name=tf.constant([{name}]),
    psi=tf.constant(1.0),  # below 1: nearer to the average image
    truncation=tf.constant(float("inf")),  # noise within plus or minus this
)["images"]  # uint8 [1, S, S, 3]
```

Signatures: `seed`, `seed_name`, `z` and `z_name`, of a seed or of noise, and of a label or a
class's name. All take any batch and give `images` (uint8) and `pixels` (float32 in [-1, 1])."""
