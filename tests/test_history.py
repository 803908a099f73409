"""What records of a run mean together, on runs that went back."""

import pytest

from hamgan.run import history, records
from hamgan.run.folder import Folder
from hamgan.run.history import History
from hamgan.run.log import Log
from hamgan.sweeps import Axis, Sweep, results


def train(step, **more):
    return {"kind": "train", "step": step, **more}


def evaluation(step, fid, **more):
    return {"kind": "evaluation", "step": step, "fid": fid, **more}


def rollback(step, to):
    return {"kind": "event", "step": step, "event": "rolled back", "to": to}


def test_rollback_takes_away_all_but_events_behind_the_step_it_went_back_to():
    warning = {"kind": "event", "step": 4, "event": "collapse"}
    aggregate = {"kind": "aggregate", "step": 4, "seeds": [0, 1]}
    run = [train(2), evaluation(2, 9.0), train(4), evaluation(4, 1.0), aggregate, warning]
    run += [rollback(4, to=2), train(3), evaluation(4, 5.0)]
    assert history.surviving(run) == [run[0], run[1], warning, *run[6:]]


def test_of_steps_that_were_trained_twice_the_later_records_count():
    run = [train(1, loss=1), train(2, loss=2), train(3, loss=3), train(2, loss=4), train(3, loss=5)]
    assert [record["loss"] for record in history.surviving(run)] == [1, 4, 5]
    # What was evaluated needn't be evaluated again.
    assert history.surviving([train(4), evaluation(4, 1.0), train(2)])[0] == evaluation(4, 1.0)


def test_every_reader_of_a_run_leaves_out_what_was_rolled_back(tmp_path):
    rate = {"images_per_second": 10.0}
    run = [train(2, **rate), evaluation(2, 9.0), train(4, **rate), evaluation(4, 1.0)]
    run += [rollback(4, to=2), train(4, images_per_second=30.0), evaluation(4, 5.0)]
    log = Log(str(tmp_path))
    for record in run:
        log.write(record)
    found = History(Folder(tmp_path).metrics)
    assert found.scores("fid") == {2: 9.0, 4: 5.0}
    sweep = Sweep(axes=[Axis(name="rank", bindings=["context.Hamburger.rank"], values=[1])])
    run = results.read_run(str(tmp_path), sweep, {"steps": 4, "batch_size": 60}, seed=0)
    assert run.curve == {2: 9.0, 4: 5.0} and run.score == 5.0 and run.state == "complete"
    assert run.step_seconds == 60 / 20.0


def test_best_follows_the_direction_of_the_score(tmp_path):
    path = Folder(tmp_path).metrics
    for step, value in ((1, 3.0), (2, 7.0), (3, 5.0)):
        records.append(path, {"kind": "evaluation", "step": step, "score": value})
    found = History(path)
    assert found.best_steps("score", 2) == [1, 3]
    assert found.best_steps("score", 2, better="higher") == [2, 3]
    assert found.scores("score") == {1: 3.0, 2: 7.0, 3: 5.0}
    assert found.steps_to_keep("score", 1, better="higher") == {2}


def test_the_best_isnt_the_luckiest_seed_of_one_checkpoint(tmp_path):
    path = Folder(tmp_path).metrics
    for step, seed, value in ((1, 0, 5.0), (2, 0, 9.0), (2, 1, 4.0), (2, 2, 8.0), (3, 0, 6.0)):
        records.append(path, {"kind": "evaluation", "step": step, "seed": seed, "score": value})
    found = History(path)
    assert found.scores("score") == {1: 5.0, 2: 7.0, 3: 6.0}
    assert found.best_steps("score", 3) == [1, 3, 2]
    # Of one seed that was scored twice the newer record counts.
    records.append(path, {"kind": "evaluation", "step": 2, "seed": 0, "score": 0.0})
    assert History(path).scores("score")[2] == 4.0


@pytest.mark.parametrize("field", history.MEASURED_UNDER)
def test_scores_are_compared_where_they_were_measured_alike(field):
    one, other = evaluation(1, 2.0, **{field: "a"}), evaluation(1, 2.0, **{field: "b"})
    assert history.measured_under(one) != history.measured_under(other)
    assert len(history.latest([one, other, {**one, "fid": 3.0}])) == 2


def test_words_of_a_protocol_decide_nothing():
    one, other = (
        evaluation(1, 2.0, protocol={"fingerprint": "f", "words": words}) for words in "ab"
    )
    assert history.measured_under(one) == history.measured_under(other)


def test_a_run_without_records_has_no_history(tmp_path):
    found = History(Folder(tmp_path).metrics)
    assert found.of_kind("evaluation") == [] and found.scores("fid") == {}
    assert found.steps_to_keep("fid", 1) == set()
