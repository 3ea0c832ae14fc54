"""The scheduler: whoever shares the batch, each gets what he would get alone; and nobody waits for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from ree.errors import InputError, LimitError
from ree.lm.batch import FAILURES_MAX, Batch, Full, Stopping, Watch
from ree.lm.ticket import Cause, Drawn, Ended, Job, Ticket
from tests.lm_fakes import BYTES, END, FakeEngine, FakeRecorder, FakeSampler, FakeText, folded, logits_of

PATIENCE_S = 60.0


@dataclass
class Reader:
    """Reads a ticket to its end, as an owner would."""

    there: threading.Event = field(default_factory=threading.Event)
    events: list[Any] = field(default_factory=list)
    ticket: Ticket = None

    def notify(self) -> None:
        self.there.set()

    def until(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not enough():
            assert time.monotonic() < deadline, "the scheduler gave too little"
            self.there.wait(0.2)
            self.there.clear()
            self.events += self.ticket.take()

    def end(self) -> Ended:
        self.until(lambda: bool(self.events) and isinstance(self.events[-1], Ended))
        return self.events[-1]

    def tokens(self, count: int) -> None:
        self.until(lambda: len(self.drawn) >= count)

    @property
    def drawn(self) -> list[Drawn]:
        return [e for e in self.events if isinstance(e, Drawn)]

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.drawn)


class Faults(Watch):
    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []
        self.read = self.drawn = self.steps = self.firsts = 0

    def step(self, seconds: float, rows: int) -> None:
        self.steps += 1

    def first_token(self, seconds: float) -> None:
        self.firsts += 1

    def tokens(self, read: int, drawn: int) -> None:
        self.read += read
        self.drawn += drawn

    def fault(self, where: str, error: Exception) -> None:
        self.faults.append((where, str(error)))


@contextmanager
def running(engine: FakeEngine, **options: Any) -> Iterator[Batch]:
    batch = Batch(engine, **options)
    batch.start()
    try:
        yield batch
    finally:
        assert batch.stop(PATIENCE_S)
        assert engine.sequences == {} and batch.running == batch.waiting == 0


def job(prompt: bytes = b"once upon", tokens: int = 12, **more: Any) -> Job:
    """A greedy generation that no end token stops, unless `more` says otherwise."""
    stops = more.pop("stops", ())
    drawing = {"ban": [END]} | more.pop("drawing", {})
    found = {
        "sampler": FakeSampler(prompt, **drawing),
        "text": FakeText(stops),
        "recorder": FakeRecorder(more.pop("fail_at", None)),
        "stop_tokens": frozenset({END}),
    }
    return Job(list(prompt), tokens, **(found | more))


def ask(batch: Batch, wanted: Job) -> Reader:
    reader = Reader()
    reader.ticket = batch.submit(wanted, reader.notify)
    return reader


def alone(wanted: Job) -> tuple[list[int], str, str]:
    """Tokens, reason and receipt of a job without a scheduler: the whole prefix again for each token."""
    tokens, start = list(wanted.prompt), len(wanted.prompt)
    while True:
        state = 0x1234567
        for token in tokens:
            state = folded(state, token)
        token = wanted.sampler.draw(logits_of(state), len(tokens))
        wanted.recorder.step(len(tokens), token, logits_of(state))
        tokens.append(token)
        wanted.text.push(token)
        if token in wanted.stop_tokens or wanted.text.stopped:
            return tokens[start:], "stop", wanted.recorder.finish("stop")[0]
        if len(tokens) - start == wanted.tokens_max:
            return tokens[start:], "length", wanted.recorder.finish("length")[0]


def random_job(rng: random.Random) -> Callable[[], Job]:
    """Makes the same job again and again."""
    prompt = bytes(rng.choices(b"abcdefgh ", k=rng.choice([1, 2, 7, 15, 16, 17, 60, 200])))
    tokens = rng.randint(1, 40)
    drawing = {"temperature": rng.choice([0.0, 0.7, 1.5]), "seed": rng.getrandbits(60)}
    drawing["ban"] = rng.choice([[], [END]])
    stops = rng.choice([(), ("qu",), ("a", "zz")])
    return lambda: job(prompt, tokens, drawing=dict(drawing), stops=stops)


@pytest.mark.parametrize(("slots", "rows_max"), [(1, 1), (1, 16), (3, 1), (5, 2), (4, 16), (16, 7), (8, 64)])
def test_joined_at_random_moments_equal_to_alone(slots: int, rows_max: int) -> None:
    rng = random.Random(slots * 100 + rows_max)
    makers = [random_job(rng) for _ in range(40)]
    with running(FakeEngine(slots, rows_max=rows_max), waiting_max=100) as batch:
        readers = []
        for make in makers:
            readers.append(ask(batch, make()))
            time.sleep(rng.choice([0, 0, 0.0005, 0.002]))
        for make, reader in zip(makers, readers, strict=True):
            tokens, reason, receipt = alone(make())
            ended = reader.end()
            assert [e.token for e in reader.drawn] == tokens
            assert (ended.reason, ended.cause) == (reason, None)
            assert reader.ticket.job.recorder.finish(reason)[0] == receipt
            assert ended.tokens == len(tokens)


def test_those_who_leave_change_nothing_for_those_who_stay() -> None:
    rng = random.Random(7)
    with running(FakeEngine(6, rows_max=8), waiting_max=100) as batch:
        kept = []
        for number in range(60):
            make = random_job(rng)
            reader = ask(batch, make())
            if number % 2:
                time.sleep(rng.choice([0, 0.0005]))
                reader.ticket.cancel()
            else:
                kept.append((make, reader))
        for make, reader in kept:
            reader.end()
            assert [e.token for e in reader.drawn] == alone(make())[0]


def test_a_step_never_has_too_many_rows_and_no_one_starves() -> None:
    """A long prompt beside three that decode: all take part in every step."""
    engine = FakeEngine(4, rows_max=8, keep_steps=True, lock=threading.Lock())
    with running(engine) as batch:
        with engine.lock:  # nothing runs before all are there
            short = [ask(batch, job(bytes([97 + n]), 30)) for n in range(3)]
            long = ask(batch, job(b"\x01" * 100, 2))
            time.sleep(0.05)
        for reader in (*short, long):
            reader.end()
    slots_of_long = {row.slot for step in engine.steps for row in step if row.token == 1}
    assert len(slots_of_long) == 1
    reading = [s for s in engine.steps if any(r.slot in slots_of_long and r.position < 99 for r in s)]
    both = [s for s in reading if len({r.slot for r in s}) == 4]
    assert len(both) >= 15  # 100 rows, 5 a step beside three others
    assert all(len(s) == 8 for s in both)
    assert max(len(s) for s in engine.steps) <= 8


def test_prompts_are_read_oldest_first() -> None:
    engine = FakeEngine(2, rows_max=10, keep_steps=True, lock=threading.Lock())
    with running(engine) as batch:
        with engine.lock:
            first = ask(batch, job(b"a" * 50, 1))
            second = ask(batch, job(b"b" * 50, 1))
            time.sleep(0.05)
        assert first.end().first_token_s < second.end().first_token_s
    counted = [(sum(r.token == 97 for r in s), sum(r.token == 98 for r in s)) for s in engine.steps]
    assert (9, 1) in counted and (1, 9) not in counted[:5]


def test_more_running_than_rows_take_turns() -> None:
    engine = FakeEngine(6, rows_max=2, keep_steps=True, lock=threading.Lock())
    with running(engine) as batch:
        with engine.lock:
            readers = [ask(batch, job(bytes([97 + n]), 20)) for n in range(6)]
            time.sleep(0.05)
        for reader in readers:
            reader.end()
    seen = [row.slot for step in engine.steps[1:40] for row in step]
    counts = [seen.count(slot) for slot in range(6)]
    assert max(counts) - min(counts) <= 2


def test_first_come_first_served_when_slots_are_few() -> None:
    with running(FakeEngine(1), waiting_max=20) as batch:
        readers = [ask(batch, job(tokens=5)) for _ in range(10)]
        waits = [reader.end().slot_s for reader in readers]
    assert waits == sorted(waits)


# -- ends ------------------------------------------------------------------------------------------


def test_an_end_token_is_counted_and_is_no_text() -> None:
    wanted = job(b"q", 4000, drawing={"ban": []}, logprobs=2)
    with running(FakeEngine()) as batch:
        reader = ask(batch, wanted)
        ended = reader.end()
    last = reader.drawn[-1]
    assert (ended.reason, last.token, last.ends, last.text) == ("stop", END, True, "")
    assert not any(e.ends for e in reader.drawn[:-1])
    assert ended.tokens == len(reader.drawn) == len(wanted.recorder.positions)
    assert wanted.recorder.positions == list(range(1, 1 + len(reader.drawn)))
    assert all(e.logprob <= e.top[0][1] <= 0 and len(e.top) == 2 for e in reader.drawn)


def test_a_stop_string_is_no_part_of_the_text() -> None:
    with running(FakeEngine()) as batch:
        whole = ask(batch, job(tokens=60))
        whole.end()
        stop = whole.text[20:24]
        reader = ask(batch, job(tokens=60, stops=[stop]))
        ended = reader.end()
    assert reader.text == whole.text[: whole.text.index(stop)]
    assert ended.reason == "stop" and ended.tokens < 60


def test_what_was_held_back_comes_at_the_end() -> None:
    with running(FakeEngine()) as batch:
        whole = ask(batch, job(tokens=30))
        whole.end()
        reader = ask(batch, job(tokens=30, stops=["never in a text like this"]))
        assert reader.end().reason == "length"
    assert reader.text == whole.text


def test_a_full_context() -> None:
    with running(FakeEngine(context=32)) as batch:
        reader = ask(batch, job(b"p" * 31, 1))
        assert reader.end().reason == "length"
        reader = ask(batch, job(b"p", 31))
        assert reader.end().tokens == 31


@pytest.mark.parametrize("wanted", [job(b"", 1), job(b"p" * 32, 1), job(b"p", 32), job(b"p", 0)])
def test_jobs_that_do_not_fit(wanted: Job) -> None:
    with running(FakeEngine(context=32)) as batch, pytest.raises(InputError):
        batch.submit(wanted, lambda: None)


@pytest.mark.parametrize("token", [-1, BYTES + 3, 1 << 40])
def test_tokens_that_are_none(token: int) -> None:
    wanted = Job([token], 1, FakeSampler(), FakeText(), FakeRecorder())
    with running(FakeEngine()) as batch, pytest.raises(InputError):
        batch.submit(wanted, lambda: None)


def test_options_that_are_none() -> None:
    with pytest.raises(InputError):
        Batch(FakeEngine(), waiting_max=-1)
    with pytest.raises(InputError):
        Batch(FakeEngine(), rows_max=0)


def test_cancelled_frees_the_slot() -> None:
    engine = FakeEngine(1, step_s=0.001)
    with running(engine, waiting_max=5) as batch:
        first = ask(batch, job(tokens=4000))
        first.tokens(3)
        second = ask(batch, job(tokens=2))
        third = ask(batch, job(tokens=2))
        third.ticket.cancel()
        assert third.end().cause is Cause.CANCELLED and not third.drawn  # while it waited
        first.ticket.cancel()
        assert first.end().cause is Cause.CANCELLED and first.end().reason is None
        assert second.end().reason == "length"
        first.ticket.cancel()  # once more is no harm


def test_out_of_time_while_it_runs_and_while_it_waits() -> None:
    with running(FakeEngine(1, step_s=0.002), waiting_max=5) as batch:
        runs = ask(batch, job(tokens=4000, timeout_s=0.3))
        waits = ask(batch, job(tokens=4000, timeout_s=0.1))
        after = ask(batch, job(tokens=2))
        assert waits.end().cause is Cause.TIMEOUT and waits.end().slot_s is None
        assert runs.end().cause is Cause.TIMEOUT and runs.drawn
        assert after.end().reason == "length"


def test_a_reader_who_lags_is_waited_for_and_loses_nothing() -> None:
    with running(FakeEngine(2)) as batch:
        lags = ask(batch, job(tokens=200, events_max=8))
        quick = ask(batch, job(tokens=200))
        assert quick.end().reason == "length"
        time.sleep(0.05)
        assert len(lags.events) == 0 and lags.ticket.full
        assert lags.end().reason == "length"
        assert [e.token for e in lags.drawn] == alone(job(tokens=200))[0]


def test_a_reader_who_never_reads_is_dropped() -> None:
    engine = FakeEngine(1)
    with running(engine, stall_s=0.1, waiting_max=2) as batch:
        never = ask(batch, job(tokens=4000, events_max=8))
        after = ask(batch, job(tokens=2))
        assert after.end().reason == "length"
        events = never.ticket.take()
        assert len(events) == 9 and events[-1].cause is Cause.STALLED


def test_as_many_as_may_wait() -> None:
    engine = FakeEngine(2, lock=threading.Lock())
    with running(engine, waiting_max=3) as batch:
        with engine.lock:
            readers = [ask(batch, job(tokens=2)) for _ in range(5)]
            with pytest.raises(Full):
                batch.submit(job(), lambda: None)
        for reader in readers:
            assert reader.end().reason == "length"
        assert ask(batch, job(tokens=2)).end().reason == "length"


# -- what breaks -------------------------------------------------------------------------------------


def test_an_error_in_one_ends_that_one() -> None:
    watch = Faults()
    with running(FakeEngine(3), watch=watch) as batch:
        good, bad = ask(batch, job(tokens=30)), ask(batch, job(tokens=30, fail_at=15))
        assert bad.end().cause is Cause.REQUEST and len(bad.drawn) == 15 - len(b"once upon")
        assert good.end().reason == "length" and batch.healthy
    assert [e.token for e in good.drawn] == alone(job(tokens=30))[0]
    assert watch.faults == [("request", "the recorder broke")]


def test_a_broken_reader_ends_nothing_else() -> None:
    def broken() -> None:
        raise RuntimeError("the loop is closed")

    watch = Faults()
    with running(FakeEngine(2), watch=watch) as batch:
        batch.submit(job(tokens=5), broken)
        assert ask(batch, job(tokens=30)).end().reason == "length"
    assert watch.faults == []


def test_an_engine_that_breaks_ends_all_that_run_and_serves_on() -> None:
    watch = Faults()
    engine = FakeEngine(2, lock=threading.Lock())
    with running(engine, watch=watch, waiting_max=5) as batch:
        with engine.lock:
            readers = [ask(batch, job(tokens=10)) for _ in range(2)]
            time.sleep(0.05)
            late = ask(batch, job(tokens=10))
            engine.fail_steps = 1
        assert {reader.end().cause for reader in readers} <= {Cause.ENGINE, None}
        assert Cause.ENGINE in {reader.end().cause for reader in readers}
        assert late.end().reason == "length"
        assert batch.healthy
    assert watch.faults == [("engine", "the engine broke")]


def test_an_engine_that_stays_broken_is_unhealthy_until_it_works() -> None:
    engine = FakeEngine(1, fail_steps=FAILURES_MAX)
    with running(engine) as batch:
        for _ in range(FAILURES_MAX):
            assert ask(batch, job()).end().cause is Cause.ENGINE
        assert not batch.healthy
        assert ask(batch, job()).end().reason == "length"
        assert batch.healthy


def test_an_engine_that_cannot_open() -> None:
    class Shut(FakeEngine):
        def open(self) -> int:
            if self.fail_steps:
                self.fail_steps -= 1
                raise RuntimeError("no memory")
            return super().open()

    watch = Faults()
    with running(Shut(1, fail_steps=2), watch=watch) as batch:
        assert ask(batch, job(tokens=2)).end().reason == "length"
    assert watch.faults == [("engine", "no memory")] * 2


def test_logits_of_a_wrong_shape_are_the_engines_fault() -> None:
    class Short(FakeEngine):
        def step(self, rows: Any) -> Any:
            return super().step(rows)[:, :-1]

    with running(Short(1)) as batch:
        assert ask(batch, job()).end().cause is Cause.ENGINE


# -- the end of the server -----------------------------------------------------------------------------


def test_draining_finishes_what_is_there_and_takes_no_more() -> None:
    with running(FakeEngine(1, step_s=0.001), waiting_max=5) as batch:
        readers = [ask(batch, job(tokens=30)) for _ in range(3)]
        done: list[bool] = []
        drain = threading.Thread(target=lambda: done.append(batch.drain(PATIENCE_S)))
        drain.start()
        while not batch.draining:
            time.sleep(0.001)
        with pytest.raises(Stopping):
            batch.submit(job(), lambda: None)
        assert [reader.end().reason for reader in readers] == ["length"] * 3
        drain.join()
        assert done == [True]


def test_draining_ends_at_its_deadline_and_stopping_ends_the_rest() -> None:
    with running(FakeEngine(1, step_s=0.002), waiting_max=5) as batch:
        readers = [ask(batch, job(tokens=4000)) for _ in range(3)]
        readers[0].tokens(1)
        assert not batch.drain(0.05)
        assert batch.stop(PATIENCE_S)
        assert [reader.end().cause for reader in readers] == [Cause.STOPPING] * 3
        assert not batch.healthy


def test_stopped_before_it_was_started() -> None:
    batch = Batch(FakeEngine())
    reader = ask(batch, job())
    assert batch.stop()
    assert reader.end().cause is Cause.STOPPING
    assert isinstance(Stopping(""), LimitError)


def test_what_is_counted() -> None:
    watch = Faults()
    with running(FakeEngine(3), watch=watch) as batch:
        for reader in [ask(batch, job(b"p" * 50, 7)) for _ in range(3)]:
            reader.end()
    assert (watch.read, watch.drawn, watch.firsts) == (150, 21, 3)
    assert watch.steps >= 50 * 3 // 16


def test_the_real_engine_rules_are_kept_by_the_fake() -> None:
    """A fake that let a wrong position pass would make the tests above blind."""
    from ree.lm.engine import Row

    engine = FakeEngine()
    slot = engine.open()
    engine.step([Row(1, 0, slot, False)])
    with pytest.raises(InputError):
        engine.step([Row(1, 0, slot, True)])
    assert (logits_of(folded(1, 2)) != logits_of(folded(2, 2))).any()
