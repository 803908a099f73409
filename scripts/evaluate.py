"""Scores checkpoints of a run: FID, Inception Score and KID, written to metrics.jsonl, TensorBoard and the report.

    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data
    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data --checkpoint=ckpt-400
    python scripts/evaluate.py --model_dir=runs/digits --data_dir=data --watch

The configuration is the one kept in model_dir. The protocol may be changed for one evaluation, e.g.
--gin_param="protocol.Protocol.num_samples=10000".
"""

import cli
from absl import flags

from hamgan import checkpoints, distribution, loop
from hamgan.evaluation import report, runner

FLAGS = flags.FLAGS


def evaluate(experiment, *, checkpoint=None, watch=False):
    """Scores one checkpoint (None: the newest), or with `watch` every one as it appears."""
    path = None if watch else checkpoints.find(FLAGS.model_dir, checkpoint)
    strategy = distribution.create_strategy(FLAGS.accelerator, FLAGS.tpu)
    dataset = experiment.dataset(data_dir=FLAGS.data_dir)
    with strategy.scope():
        generator = experiment.generator()
    variables = checkpoints.network_variables("generator", generator)
    evaluator = runner.Evaluator(
        generator=generator,
        strategy=strategy,
        dataset=dataset,
        protocol=experiment.protocol,
        data_dir=FLAGS.data_dir,
    )
    log = loop.Log(FLAGS.model_dir)

    def publish(record):
        log.write(record)
        print(
            f"{record['checkpoint']}: FID {record['fid']:.3f}  IS {record['inception_score']:.3f}  "
            f"KID {record['kid']:.5f} +- {record['kid_stderr']:.5f}  ({record['num_samples']:,} samples, "
            f"seed {record['seed']}, {record['reference']['count']:,} images of {record['reference']['dataset']} "
            f"{record['reference']['split']})",
            flush=True,
        )

    if watch:
        runner.evaluate_new_checkpoints(
            evaluator,
            variables,
            model_dir=FLAGS.model_dir,
            publish=publish,
            final_step=experiment.schedule.num_steps,
            done=log.evaluated_steps(),
        )
    else:
        checkpoints.restore(path, variables, partial=True)
        publish(evaluator.evaluate(checkpoint=path, step=checkpoints.step_of(path)))
    print(f"Report: {report.write_report(FLAGS.model_dir)}")


def main():
    evaluate(cli.load_experiment(), checkpoint=FLAGS.checkpoint, watch=FLAGS.watch)


if __name__ == "__main__":
    cli.define_flags()
    flags.adopt_module_key_flags(cli)
    flags.DEFINE_string("checkpoint", None, "Path or name (ckpt-1000) of a checkpoint; default: the newest.")
    flags.DEFINE_bool("watch", False, "Score every checkpoint as it appears, until training is over.")
    cli.run(main)
