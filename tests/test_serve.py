"""Requests share evaluations and draw what `model.draw` draws; the queue, limits, what is told."""

import threading

import jax
import numpy as np
import pytest

from ddim_jax.export import row
from tests.errors import rejects
from tests.selection import slow_but
from tests.tiny_pipeline import tiny_digits, tiny_pipeline

pytest.importorskip("fastapi", reason="pip install 'ddim_jax[serve]'")

from ddim_jax.serve import asked as asking  # noqa: E402
from ddim_jax.serve import engine as engines  # noqa: E402
from ddim_jax.serve import evaluation, metrics  # noqa: E402
from ddim_jax.serve.asked import Asked, Desk, Limits, parse  # noqa: E402
from ddim_jax.serve.engine import Engine, Refused  # noqa: E402


@pytest.fixture(scope="module")
def engine():
    """Two models of labels and pixels, side by side, as of two LoRAs."""
    tiny = tiny_digits()
    twin = tiny.replace(params=jax.tree.map(lambda leaf: 1.1 * leaf, tiny.params), name="twin")
    engine = Engine({"tiny": tiny, "twin": twin}, sizes=(1, 4), queue=64).start()
    yield engine
    engine.stop(30)


@pytest.fixture(scope="module")
def texts():
    """An engine of a model of texts and latents."""
    engine = Engine({"sd": tiny_pipeline()}, sizes=(2,), queue=64).start()
    yield engine
    engine.stop(30)


@pytest.fixture(scope="module")
def desk(engine):
    return Desk(engine.models, Limits(num=8, steps=30, deadline=60))


def drawn(engine, desk, **fields):
    """What the engine draws."""
    return engine.submit(desk.job(Asked(**fields))).result(60)


def wanted(
    engine, name="tiny", num=1, way=False, label=None, prompt=None, negative=None, seed=0, **recipe
):
    """What `model.draw` draws of the same; of all tables and counts by one program."""
    model = engine.models[name]
    recipe = model.recipe.replace(**recipe)
    num = max([num, *(len(given) for given in (label, prompt) if isinstance(given, list))])
    table, count = recipe.table(model.schedule).pad(24, row.SLOTS), 4
    texts = {"prompt": prompt, "negative_prompt": negative} if prompt is not None else {}
    given = model.conditions(count, recipe, model.inputs.labels(label, count), **texts)
    generator = model.kept_generator(recipe, "jit", collect=("x0",))
    (batch,) = generator.batches(table, np.arange(count), seed=seed, **given)
    if way:
        return [model.pictures(x0)[:num] for x0 in batch.result.collected["x0"]]
    return model.pictures(batch.result.x)[:num]


def assert_equal(found, expected):
    """To rounding: of one in a hundred thousand pixels or less, by 1."""
    difference = np.abs(found.astype(int) - expected)
    assert found.shape == expected.shape and difference.max() <= 1
    assert (difference > 0).mean() < 1e-2


ASKED = [
    dict(label=3, seed=7),
    dict(label=[1, 2, 5], seed=2**33 + 1, solver="unipc_2", steps=6),
    dict(label=4, solver="ddpm", steps=5, seed=1),
    dict(num=2, solver="rk4", steps=3, guidance_scale=2.0),
    dict(label=9, solver="dpm_solver++_3m", steps=7, guidance_scale=0.0),
    dict(label="8", solver="ddim", steps=3, solver_options={"eta": 0.5}, stride="quadratic"),
]


def test_requests_that_share_evaluations_are_drawn_as_alone(engine, desk):
    futures = [engine.submit(desk.job(Asked(**fields))) for fields in ASKED * 2]
    expected = [wanted(engine, **fields) for fields in ASKED]
    for future, picture in zip(futures, expected * 2, strict=True):
        assert_equal(future.result(60), picture)
    for fields, picture in zip(ASKED, expected, strict=True):
        assert_equal(drawn(engine, desk, **fields), picture)


def test_models_take_turns(engine, desk):
    names = ["tiny", "twin"] * 3
    jobs = [desk.job(Asked(model=name, num=3, seed=2)) for name in names]
    found = [future.result(60) for future in [engine.submit(job) for job in jobs]]
    for name, pictures in zip(names, found, strict=True):
        assert_equal(pictures, wanted(engine, name, num=3, seed=2))
    assert np.abs(found[0].astype(int) - found[1]).max() > 5


@pytest.mark.slow
def test_models_of_texts_and_latents(texts):
    desk = Desk(texts.models)
    many = [
        dict(prompt="a cat", seed=3),
        dict(prompt=["a cat", "the sea"], seed=3, negative_prompt="blurry", guidance_scale=4.0),
        dict(prompt="", seed=4, solver="dpm_solver++_2m", steps=5, guidance_scale=1.01),
    ]
    futures = [texts.submit(desk.job(Asked(**fields))) for fields in many]
    unguided = texts.submit(desk.job(Asked(prompt="a cat", negative_prompt="x", guidance_scale=1)))
    for future, fields in zip(futures, many, strict=True):
        fields["negative"] = fields.pop("negative_prompt", None)
        assert_equal(future.result(60), wanted(texts, "sd", **fields))
    # a scale of 1 has no null text, and shares evaluations with others that have
    assert_equal(unguided.result(60), wanted(texts, "sd", prompt="a cat", guidance_scale=1 + 1e-6))
    before = metrics._compiled
    for prompt in ("a", ["b", "c", "d", "e", "f"]):
        drawn(texts, desk, prompt=prompt, guidance_scale=1.5)
        drawn(texts, desk, prompt=prompt, guidance_scale=1.0, negative_prompt="x")
    assert metrics._compiled == before


@pytest.mark.slow
def test_texts_are_encoded_no_more_than_there_are_pictures(texts, monkeypatch):
    """And of those that were, a few are kept."""
    desk, seen = Desk(texts.models), []
    inputs = texts.models["sd"].inputs
    told = type(inputs).told
    monkeypatch.setattr(type(inputs), "told", lambda *a: seen.append(len(a[1])) or told(*a))
    for _ in range(2):
        drawn(texts, desk, num=1, prompt=[f"{i}" for i in range(500)], steps=1)
    assert seen == [1]
    for i in range(2 * engines.KEPT_TEXTS):
        texts._told(desk.job(Asked(prompt=[f"{i}", f"{i + 0.5}"])))
    assert sum(len(key[1]) for key in texts._texts) <= engines.KEPT_TEXTS


@pytest.mark.parametrize("kind", slow_but(["lcm", "xl"], ()))
def test_models_of_texts_that_are_told_more(kind):
    engine = Engine({kind: tiny_pipeline(kind)}, sizes=(1, 4)).start()
    desk = Desk(engine.models)
    for fields in (dict(prompt="a cat", guidance_scale=2.5), dict(prompt=["a", "b"], seed=5)):
        found = drawn(engine, desk, **fields)
        assert_equal(found, engine.models[kind].draw(**fields))
    engine.stop(30)


def test_nothing_is_compiled_whatever_is_asked(engine, desk):
    drawn(engine, desk, label=1)
    before = metrics._compiled
    for fields in [*ASKED, dict(num=5), dict(num=7, solver="deis", steps=9), dict(seed=2**64 - 1)]:
        drawn(engine, desk, **fields)
    assert metrics._compiled == before


def test_estimates_of_the_way_are_those_of_the_trajectory(engine, desk):
    seen = {}
    job = desk.job(
        Asked(label=[3, 4], solver="rk4", steps=2), lambda *a: seen.update({a[:2]: a[2]})
    )
    pictures = engine.submit(job).result(60)
    fields = dict(label=[3, 4], solver="rk4", steps=2)
    way = wanted(engine, way=True, **fields)
    assert_equal(pictures, wanted(engine, **fields))
    evaluations = len(job.rows)
    assert sorted(seen) == [(place, at + 1) for place in (0, 1) for at in range(evaluations)]
    for (place, at), picture in seen.items():
        assert_equal(picture, way[at - 1][place])


def test_a_cancelled_job_leaves_its_slots_and_the_queue(engine, desk):
    entered, on = threading.Event(), threading.Event()

    def hold(*_):
        entered.set()
        assert on.wait(30)

    held = desk.job(Asked(label=1, steps=30), hold)
    others = [desk.job(Asked(num=8, steps=30)) for _ in range(3)]
    engine.submit(held)
    assert entered.wait(30)
    for job in others:
        engine.submit(job)
    assert engine.waiting == 24
    before = engine.metrics.total("ddim_jax_evaluations_total")
    for job in [held, *others[:2]]:
        engine.cancel(job)
    assert engine.waiting == 8 and held.future.cancelled()
    on.set()
    assert others[2].future.result(60).shape == (8, 8, 8, 1)
    after = engine.metrics.total("ddim_jax_evaluations_total")
    assert after - before <= 8 * 30 + 1
    assert engine.waiting == engine.live == 0


def test_a_full_queue_refuses_and_says_when_to_ask_again(engine, desk):
    entered, on = threading.Event(), threading.Event()
    held = desk.job(Asked(label=1), lambda *_: (entered.set(), on.wait(30)))
    jobs = [held, *(desk.job(Asked(num=8)) for _ in range(8))]
    engine.submit(held)
    assert entered.wait(30)
    for job in jobs[1:]:
        engine.submit(job)
    with pytest.raises(Refused, match="64 pictures wait.*room for 64, not for 1 more") as refused:
        engine.submit(desk.job(Asked()))
    assert refused.value.status == 429 and 1 <= refused.value.retry_after <= 60
    on.set()
    for job in jobs:
        assert len(job.future.result(60)) == job.num


def test_an_evaluation_that_fails_ends_its_jobs_alone(engine, desk, monkeypatch, caplog):
    def fails(*_):
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(engine._evaluations["tiny"], "step", fails)
        with pytest.raises(Refused, match="an evaluation failed: MemoryError") as failed:
            drawn(engine, desk, label=3)
        assert failed.value.status == 500
    assert_equal(drawn(engine, desk, label=3), wanted(engine, label=3))


def test_inputs_that_fail_end_their_job_alone(engine, desk, monkeypatch, caplog):
    def fails(job):
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_inputs", fails)
        with pytest.raises(Refused, match="what the network is told failed: MemoryError") as failed:
            drawn(engine, desk, label=3)
        assert failed.value.status == 500
    assert_equal(drawn(engine, desk, label=3), wanted(engine, label=3))


def test_pictures_that_are_not_finite_are_said(engine, desk):
    step = engine._evaluations["tiny"].step

    def broken(slots, estimates):
        x0 = step(slots, estimates)
        for slot in slots:
            if slot.seed[1] == 13:
                slot.carry = slot.carry._replace(point=slot.carry.point * np.nan)
        return x0

    engine._evaluations["tiny"].step = broken
    jobs = [desk.job(Asked(label=3, seed=seed)) for seed in (12, 13)]
    good, bad = [engine.submit(job) for job in jobs]
    with pytest.raises(ValueError, match="picture 0 is not finite: try a lower guidance_scale"):
        bad.result(60)
    del engine._evaluations["tiny"].step
    assert_equal(good.result(60), wanted(engine, label=3, seed=12))


class Stub(evaluation.Evaluation):
    """No network: every evaluation leaves a picture of zeros."""

    def _compile(self, size, slots):
        """Nothing."""

    def _run(self, size, slots):
        self.seconds[size], self.runs = 0.1, self.runs + 1
        for slot in slots:
            slot.carry, slot.at = self._fresh, slot.at + 1
        return np.zeros((len(slots), *self.model.sample_shape), np.float32)


def test_stopping_finishes_what_has_been_taken(monkeypatch):
    monkeypatch.setattr(engines, "Evaluation", Stub)
    engine = Engine({"tiny": tiny_digits()}, sizes=(1, 4)).start()
    desk = Desk(engine.models)
    futures = [engine.submit(desk.job(Asked(num=3, seed=seed))) for seed in range(4)]
    engine.stop(60)
    assert all(future.done() and len(future.result()) == 3 for future in futures)
    with pytest.raises(Refused, match="stopping") as refused:
        engine.submit(desk.job(Asked()))
    assert refused.value.status == 503 and not engine.alive


def test_first_come_is_first_served(monkeypatch):
    monkeypatch.setattr(engines, "Evaluation", Stub)
    engine = Engine({"tiny": tiny_digits()}, sizes=(1,)).start()
    desk, entered, on, ended = Desk(engine.models), threading.Event(), threading.Event(), []
    held = desk.job(Asked(label=1, steps=2), lambda *_: (entered.set(), on.wait(30)))
    engine.submit(held)
    assert entered.wait(30)
    for seed in range(3):
        future = engine.submit(desk.job(Asked(label=1, steps=2)))
        future.add_done_callback(lambda _, seed=seed: ended.append(seed))
    on.set()
    engine.stop(60)
    assert ended == [0, 1, 2]


# --- what is asked --------------------------------------------------------------------------------

REFUSED = {
    b'{"solver": "dimm"}': ["unknown solver 'dimm'", "did you mean 'ddim'", "unipc_2"],
    b'{"solver": "adaptive"}': ["adaptive", "no table", "it is one of ddim"],
    b'{"steps": 0}': ["steps must be in [1, 30], got 0"],
    b'{"steps": 31}': ["steps must be in [1, 30], got 31"],
    b'{"steps": 2.5}': ["steps", "valid integer", "got 2.5", "openapi.json"],
    b'{"steps": true}': ["steps", "valid integer", "got True"],
    b'{"num": 0}': ["num must be in [1, 8], got 0", "ask several times"],
    b'{"num": 9}': ["num must be in [1, 8], got 9"],
    b'{"label": 10}': ["labels must be 0..9", "got 10", "guidance_scale=0"],
    b'{"label": "cat"}': ["labels must be 0..9", "got cat"],
    b'{"label": [3, 11]}': ["got 11"],
    b'{"guidance_scale": NaN}': ["guidance_scale", "must be a number, got nan"],
    b'{"guidance_scale": 1e400}': ["guidance_scale must be", "got inf"],
    b'{"seed": -1}': ["seed must be a whole number in 0..2^64 - 1, got -1"],
    b'{"seed": 18446744073709551616}': ["seed must be", "18446744073709551616"],
    b'{"deadline": 0}': ["deadline must be in (0, 60], got 0"],
    b'{"deadline": NaN}': ["deadline must be in (0, 60], got nan"],
    b'{"model": "x"}': ["unknown model 'x'", "it is one of tiny, twin"],
    b'{"prompt": "a cat"}': ["told no text", "leave out prompt"],
    b'{"stride": "/etc/passwd.json"}': ["stride must be a name", "reads no files"],
    b'{"stride": "karas"}': ["unknown stride 'karas'", "karras"],
    b'{"solver_options": {"eta": 2}}': ["eta"],
    b'{"solver": "heun_churn", "solver_options": {"s_noise": 1e300}}': ["not finite in float32"],
    b'{"solver": "unipc_2", "solver_options": {"uncorrected": 3}}': ["uncorrected must be steps"],
    b'{"solver_options": {"lam_min": "x"}}': ["lam_min must be a number, got 'x'"],
    b'{"solver_options": {"eat": 1}}': ["no option 'eat'", "it has eta"],
    b'{"stepz": 3}': ["a request has no option 'stepz'", "did you mean 'steps'"],
    b'{"clip": "none"}': ["a request has no option 'clip'"],
    b'{"format": "gif"}': ["format", "'png', 'npz', 'json' or 'events'", "got 'gif'"],
    b"[1]": ["the body", "object"],
    b"{": ["the body must be a JSON object", "EOF"],
    b"\xff\xfe": ["the body must be a JSON object"],
    b'{"prompt": "\\ud800"}': ["the body must be a JSON object", "hex escape"],
    b"[" * 50_000: ["the body must be a JSON object", "recursion"],
    b'{"label": ' + b"9" * 10_000 + b"}": ["number out of range"],
    b'{"prompt": "' + b"a" * 5000 + b'"}': ["prompt", "at most 4000 characters"],
}


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: repr(body[:40]))
def test_what_cannot_be_drawn_is_refused_with_value_rule_and_way_out(desk, body):
    with rejects(ValueError, *REFUSED[body]) as refused:
        desk.job(parse(body))
    assert len(str(refused.value)) < 1500


def test_what_a_model_of_texts_refuses(texts):
    desk, long = Desk(texts.models), " ".join(["sea"] * 200)
    for fields, parts in (
        (dict(prompt=long), ["prompt must have at most", "tokens, got"]),
        (dict(prompt="", negative_prompt=long), ["negative_prompt must have at most"]),
        (dict(), ["draws from a text: give a prompt; '' for none"]),
        (dict(prompt=[]), ["draws from a text"]),
        (dict(prompt="a", label=1), ["takes no labels"]),
    ):
        with rejects(ValueError, *parts):
            desk.job(Asked(**fields))


def test_defaults_are_those_of_draw(desk):
    model = desk.models["tiny"]
    assert desk.job(parse(b"{}")).num == desk.job(parse(b"")).num == 1
    job = desk.job(Asked(label=[1, 2, 3]))
    assert job.num == 3 and job.labels.tolist() == [1, 2, 3]
    assert job.recipe == model.recipe and job.seed == 0
    assert desk.job(Asked(num=4)).labels.tolist() == [0, 1, 2, 3]


def test_a_table_is_made_once(desk, monkeypatch):
    made = []
    table = asking.Recipe.table
    monkeypatch.setattr(asking.Recipe, "table", lambda *a: made.append(1) or table(*a))
    for seed in range(3):
        desk.job(Asked(solver="deis", steps=11, seed=seed, label=seed))
    assert len(made) <= 2  # of the job, and of what its files say


# --- small parts ----------------------------------------------------------------------------------


def test_sizes_that_take_the_least_time():
    linear = ((1, 1.0), (4, 3.6), (16, 14.0))
    assert evaluation.cover(5, linear) == (4, 1)
    assert evaluation.cover(21, linear) == (16, 4, 1)
    flat = ((1, 1.0), (4, 1.1), (16, 1.2))
    assert evaluation.cover(1, flat) == (1,) and evaluation.cover(3, flat) == (4,)
    assert evaluation.cover(5, flat) == (16,) and evaluation.cover(33, flat) == (16, 16, 1)
    proportional = ((1, 0.1), (4, 0.4), (16, 1.6))
    assert evaluation.cover(16, proportional) == (16,) and evaluation.cover(4, proportional) == (4,)


def test_times_are_believed_as_far_as_they_make_sense():
    """Beside other work a long evaluation seems longer than it is."""
    assert evaluation.believed({16: 9.0, 1: 1.0, 4: 2.0}) == ((1, 1.0), (4, 2.0), (16, 8.0))
    assert evaluation.believed({1: 5.0, 4: 2.0, 16: 3.0}) == ((1, 2.0), (4, 2.0), (16, 3.0))


def test_numbers_for_prometheus():
    counted = metrics.Metrics()
    counted.count("ddim_jax_requests_total", status=200)
    counted.count("ddim_jax_requests_total", 2, status=422)
    counted.drawn('a "b"', 1_234_567)
    for seconds in (0.05, 0.3, 100):
        counted.took(seconds)
    text = counted.text({"ddim_jax_waiting_pictures": 3})
    for line in (
        'ddim_jax_requests_total{status="200"} 1', 'ddim_jax_requests_total{status="422"} 2',
        'ddim_jax_pictures_total{model="a \\"b\\""} 1234567', "ddim_jax_waiting_pictures 3",
        'ddim_jax_request_seconds_bucket{le="0.05"} 1',
        'ddim_jax_request_seconds_bucket{le="0.5"} 2',
        'ddim_jax_request_seconds_bucket{le="+Inf"} 3', "ddim_jax_request_seconds_count 3",
        "# TYPE ddim_jax_pictures_total counter",
    ):  # fmt: skip
        assert line in text.splitlines(), line
