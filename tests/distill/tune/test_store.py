"""The database: a run is taken once, whoever asks; what a dead worker had can be taken back."""

import multiprocessing
from dataclasses import replace
from multiprocessing.synchronize import Barrier

from distill.tune.store import DONE, FAILED, RUNNING, WAITING, Row, Store
from distill.tune.trial_store import Trial, TrialStore

NUMBER = 60


def rows(number: int = 3) -> list[Row]:
    return [Row(f"k{i}", f"run {i}", "kd", "a", "one", 1) for i in range(number)]


def take_all(url: str, worker: str, together: Barrier, taken: "multiprocessing.Queue") -> None:
    store = Store(url, "s")
    together.wait(60)
    taken.put((worker, [key for key in sorted(store.states()) if store.claim(key, worker, "c")]))


def test_two_processes_never_take_the_same_run(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    Store(url, "s").add(rows(NUMBER))
    context = multiprocessing.get_context("spawn")
    taken, together = context.Queue(), context.Barrier(2)
    workers = [context.Process(target=take_all, args=(url, w, together, taken)) for w in "ab"]
    for worker in workers:
        worker.start()
    found = dict(taken.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert sorted(found["a"] + found["b"]) == sorted(f"k{i}" for i in range(NUMBER))
    assert {r.worker for r in Store(url, "s").rows().values()} <= {"a", "b"}


def test_a_run_goes_from_waiting_to_done(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/x/study.db", "s")
    store.add(rows())
    store.add(rows(4))
    assert len(store.states()) == 4
    assert store.claim("k0", "w", "code")
    assert not store.claim("k0", "v", "code")
    store.started("k0", 7, "99", "python x")
    assert store.finish("k0", DONE, {"val": {"accuracy": 1.5}}, 3.0)
    row = store.rows()["k0"]
    assert (row.state, row.worker, row.pid, row.code) == (DONE, "w", 7, "code")
    assert (row.command, row.seconds, row.result["val"]) == ("python x", 3.0, {"accuracy": 1.5})
    assert not store.finish("k1", DONE, {}, 0.0)


def test_failures_keep_their_reason_and_may_be_retried(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/study.db", "s")
    store.add(rows())
    store.claim("k0", "w", "c")
    assert store.fail("k0", "out of memory", 1, WAITING, 2.0)
    assert store.claim("k0", "w", "c")
    store.fail("k0", "again", 2, FAILED, 2.0)
    assert store.give_up("k1", FAILED, "needs run 0")
    assert [store.rows()[key].reason for key in ("k0", "k1")] == ["again", "needs run 0"]
    assert store.retry() == 2
    assert set(store.states().values()) == {WAITING}


def test_what_a_worker_had_is_taken_back_once_and_only_if_it_is_silent(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/study.db", "s")
    store.add(rows())
    store.claim("k0", "w", "c")
    old = store.rows()["k0"]
    store.beat(["k0"], "w")
    assert not store.release(old)
    assert store.release(store.rows()["k0"])
    assert not store.release(replace(old, state=RUNNING))
    assert (store.rows()["k0"].state, store.rows()["k0"].interrupted) == (WAITING, 1)


def test_studies_in_one_database_do_not_meet(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    one, two = Store(url, "1"), Store(url, "2")
    one.add(rows(1))
    two.add(rows(2))
    one.claim("k0", "w", "c")
    assert (one.states(), two.states()) == ({"k0": RUNNING}, {"k0": WAITING, "k1": WAITING})
    assert (one.fact("code", "a"), one.fact("code", "b"), two.fact("code", "b")) == ("a", "a", "b")
    one.set_fact("code", "c")
    assert (one.facts_so_far(), two.facts_so_far()) == ({"code": "c"}, {"code": "b"})


def test_trials_are_added_once_and_changed_from_what_is_known(tmp_path):
    trials = TrialStore(Store(f"sqlite:///{tmp_path}/study.db", "s"))
    trial = Trial("kd", "a", 0, {"lr": "1e-3"}, "asking", None, 5.0)
    assert trials.add(trial)
    assert not trials.add(replace(trial, state="open"))
    new = replace(trial, state="done", value=1.25, optuna=3)
    assert trials.change(trial, new)
    assert not trials.change(trial, new)
    assert trials.rows() == [new]
