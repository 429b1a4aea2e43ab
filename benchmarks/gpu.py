"""One GPU: a forward pass, a whole sampler and a train step, ours against torch, in minutes.

    pip install torch
    python -m benchmarks.gpu --seconds=150
    python -m benchmarks.gpu --cases=dit-xl-2:forward:8:bfloat16,cifar10:train:128:bfloat16
    python -m benchmarks.gpu --toy            # tiny networks, on anything

A case is NETWORK:KIND:BATCH:DTYPE. `forward` is one evaluation, `sample` 20 steps of DDIM as
sample.py draws (a compiled scan) against a loop in Python, `train` a step with loss, gradient,
clipping, Adam and moving average. float32 is TF32 on both sides. The torch networks are those of
`torch_networks.py`, with our random weights: "differ" is the distance of the outputs over the
length of torch's. torch runs eagerly (convolutions with channels last, fused Adam), as a CUDA graph
of that, and for the networks in --compile compiled (DiT's blocks, other networks whole), as a CUDA
graph too where nothing is trained. Calls take turns, each is waited for; the ratio is of medians,
to the best of torch, below 1 ours is faster.

Cases that share a network and a dtype are compiled together, in threads. Each prints one line and
appends its rows to a CSV file at once; what does not fit into --seconds is left out.
"""

import argparse
import contextlib
import copy
import csv
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # the other half is torch's

import jax
import ml_collections
import numpy as np
import torch

from benchmarks import torch_networks
from benchmarks.common import alternate, our_training
from configs import cifar10
from ddim_jax import checkpoints, experiment
from ddim_jax.model import Model
from ddim_jax.recipe import Recipe

Call = Callable[[], Any]
CASES = (
    "dit-xl-2:forward:8:bfloat16,dit-xl-2:forward:1:bfloat16,dit-xl-2:forward:32:bfloat16,"
    "dit-xl-2:sample:8:bfloat16,cifar10:train:128:bfloat16,dit-b-2:train:64:bfloat16,"
    "sd15:forward:2:bfloat16,sd15:forward:1:bfloat16,sd15:forward:8:bfloat16,"
    "cifar10:sample:64:bfloat16,sd15:forward:2:float32,sd15:forward:1:float32,"
    "sd15:forward:8:float32"
)
"""The ones that say most first."""
TOY = {
    "sd15": dict(widths=(32, 64), depths=(1, 0), heads=(2, 2), num_blocks=1),
    "dit-xl-2": dict(width=48, depth=2, heads=4),
    "dit-b-2": dict(width=48, depth=2, heads=4),
    "cifar10": dict(channels=32, channel_mults=(1, 2), num_blocks=1),
}
"""What a tiny network of each has instead."""
STEPS = 20
PLACE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Case(NamedTuple):
    """What is measured."""

    network: str
    kind: str
    batch: int
    dtype: str


class Late(BaseException):
    """Something took longer than it may; no library catches it on its way."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises Late after so long."""

    def stop(*_):
        raise Late

    before, start = signal.signal(signal.SIGALRM, stop), time.perf_counter()
    left, _ = signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    try:
        yield
    finally:
        left = max(0.01, left - (time.perf_counter() - start)) if left else 0  # of one around it
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)


# --- networks -------------------------------------------------------------------------------------


def config_of(name: str, dtype: str, toy: bool) -> ml_collections.ConfigDict:
    """The config of a network that is trained here: CIFAR-10's, or a DiT of latents."""
    config = cifar10.get_config()
    config.data.image_shape = (32, 32, 3)
    config.model.out_channels = 3
    with config.unlocked():
        if name == "dit-b-2":
            config.data.image_shape = (32, 32, 4)
            config.model = dict(name="dit", width=768, depth=12, heads=12, num_classes=0)
        config.model.update(TOY[name] if toy else {}, dtype=dtype)
    return experiment.resolve(config)


def model_of(name: str, dtype: str, toy: bool) -> Model:
    """A model without weights."""
    if name in ("cifar10", "dit-b-2"):
        return experiment.build(config_of(name, dtype, toy))
    model = checkpoints.load(f"shapes:{name}", dtype=dtype)
    return model.replace(network=model.network.clone(**TOY[name])) if toy else model


def weights(model: Model, dtype: str) -> dict[str, Any]:
    """Random parameters on torch, which keep features alive."""

    def fill(path, leaf):
        numbers = torch.randn(leaf.shape, device=PLACE)
        if path[-1].key in ("bias", "scale"):
            return (numbers * 0.02 + (path[-1].key == "scale")).to(getattr(torch, dtype))
        fan = np.prod(leaf.shape[1:-1] if path[0].key == "blocks" else leaf.shape[:-1])
        return (numbers * fan**-0.5).to(getattr(torch, dtype))

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def on_jax(tensors: Any) -> Any:
    """The same arrays for JAX, which look at the same memory."""
    if PLACE.type == "cuda":
        torch.cuda.synchronize()
    return jax.tree.map(lambda leaf: jax.numpy.from_dlpack(leaf.detach().contiguous()), tensors)


def inputs_of(model: Model, batch: int) -> dict[str, np.ndarray]:
    """Labels and texts."""
    rng, told = np.random.default_rng(1), {}
    for name, put in model.inputs.declared.items():
        whole = put.dtype == "int32"
        draw = rng.integers(0, put.null, batch) if whole else rng.normal(size=(batch, *put.shape))
        told[name] = draw.astype(put.dtype)
    return told


class Twin:
    """A torch network and its inputs; x is [B, H, W, C] on both sides of it."""

    def __init__(self, model: Model, params: Any, dtype: str):
        size, _, channels = model.sample_shape
        net = torch_networks.twin(model.network, channels, size).to(PLACE)
        torch_networks.copy(params, net)
        self.kind, self.layout = getattr(torch, dtype), torch.channels_last
        self.net = net.eval().to(self.kind).to(memory_format=self.layout)

    def put(self, x: np.ndarray) -> torch.Tensor:
        """x on the device, as the network takes it."""
        x = torch.from_numpy(x).to(PLACE, self.kind)
        return x.movedim(-1, 1).to(memory_format=self.layout)

    def told(self, inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Inputs on the device."""
        kinds = {k: torch.int64 if v.dtype == np.int32 else self.kind for k, v in inputs.items()}
        return {k: torch.from_numpy(v).to(PLACE, kinds[k]) for k, v in inputs.items()}

    def compiled(self) -> torch.nn.Module:
        """The network compiled, once: all blocks of a DiT are the same program."""
        net = copy.deepcopy(self.net)
        return compile_parts(net)


def compile_parts(net: torch.nn.Module) -> torch.nn.Module:
    """Compiles the blocks of a DiT in place, or the whole of another network."""
    if not isinstance(net, torch_networks.TorchDiT):
        return torch.compile(net, dynamic=False)
    for block in net["blocks"]:
        block.compile(dynamic=False)
    return net


def synchronized(call: Call) -> Call:
    """The call, waited for."""

    def run():
        result = call()
        if PLACE.type == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def graphed(call: Call) -> Call:
    """Its replay as a CUDA graph, on the same arrays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def run():
        graph.replay()
        return result

    return run


# --- the three kinds ------------------------------------------------------------------------------


class Sides(NamedTuple):
    """Calls of one case: ours, and makers of torch's by name, which may compile."""

    ours: Call
    theirs: dict[str, Callable[[], Call]]


def sides(case: Case, model: Model, params: Any, twin: Twin, compiled: bool) -> Sides:
    """Those of a case that trains nothing."""
    make = {"forward": forward, "sample": sample}[case.kind]
    ours, their_call = make(case, model, params, twin)
    ways = {"eager": lambda: their_call(twin.net, lambda call: call)}
    if PLACE.type == "cuda":
        ways["graph"] = lambda: their_call(twin.net, graphed)
    if compiled:
        wrap = graphed if PLACE.type == "cuda" else lambda call: call
        ways["compiled"] = lambda: their_call(twin.compiled(), wrap)
    return Sides(ours, ways)


def forward(case: Case, model: Model, params: Any, twin: Twin) -> tuple[Call, Callable]:
    """One evaluation."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(case.batch, *model.sample_shape)).astype(np.float32)
    t, told = rng.uniform(0, 999, case.batch).astype(np.float32), inputs_of(model, case.batch)
    ours = functools.partial(jax.jit(model.apply), params, *jax.device_put((x, t, told)))
    given = twin.put(x), torch.from_numpy(t).to(PLACE), twin.told(told)

    def theirs(net, wrap):
        call = wrap(lambda: net(*given))
        return lambda: call().movedim(1, -1)

    return ours, theirs


def sample(case: Case, model: Model, params: Any, twin: Twin) -> tuple[Call, Callable]:
    """DDIM, eta = 0, from the same noise."""
    recipe = Recipe("ddim", "uniform", STEPS, clip="none")
    noise = np.random.default_rng(0).normal(size=(case.batch, *model.sample_shape))
    noise, told = noise.astype(np.float32), inputs_of(model, case.batch)
    generator = model.replace(params=params).generator(recipe)
    table, places = recipe.table(model.schedule), np.arange(case.batch)

    def ours():
        (drawn,) = generator.batches(table, places, told, x=noise, batch_size=case.batch)
        return drawn.result.x

    times = recipe.times(model.schedule)
    levels = [model.schedule.level(t) for t in times]
    rows = []
    for a, b in zip(levels, levels[1:], strict=False):
        scale = b.alpha / a.alpha
        rows.append((float(a.model_time), float(scale), float(b.sigma - scale * a.sigma)))

    def theirs(net, wrap):
        x, t = twin.put(noise), torch.zeros(case.batch, device=PLACE)
        x, inputs = x.float(), twin.told(told)
        step = wrap(lambda: net(x.to(twin.kind), t, inputs).float())

        def run():
            x.copy_(twin.put(noise))
            for time_, scale, add in rows:
                t.fill_(time_)
                x.copy_(scale * x + add * step())
            return x.movedim(1, -1)

        return run

    return ours, theirs


def training(case: Case, toy: bool, compiled: bool) -> Sides:
    """A step of train.py, and of torch with bfloat16 by autocast."""
    config = config_of(case.network, case.dtype, toy)
    _, ours = our_training(config, case.batch)
    model = experiment.build(config)
    params = weights(model, "float32")

    def theirs(compile_it):
        net = Twin(model, params, "float32").net.train()
        return train_step(net, compile_parts(net) if compile_it else net, model, case)

    ways = {"eager": functools.partial(theirs, False)}
    return Sides(ours, ways | ({"compiled": functools.partial(theirs, True)} if compiled else {}))


def train_step(net: torch.nn.Module, call: Any, model: Model, case: Case) -> Call:
    """A call that takes a step of torch, with images in host memory as ours."""
    size, _, channels = model.sample_shape
    images = torch.randint(0, 256, (case.batch, channels, size, size), dtype=torch.uint8)
    average = [p.detach().clone() for p in net.parameters()]
    adam = torch.optim.Adam(net.parameters(), lr=2e-4, fused=True)
    levels = [model.schedule.level(float(t)) for t in (np.arange(1000) + 1) / 1000]
    alphas, sigmas = (
        torch.tensor([float(getattr(level, name)) for level in levels], device=PLACE)
        for name in ("alpha", "sigma")
    )

    def take():
        x = images.to(PLACE, non_blocking=True).float() / 127.5 - 1
        x = x.to(memory_format=torch.channels_last)
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (case.batch,), device=PLACE)
        noisy = alphas[t].view(-1, 1, 1, 1) * x + sigmas[t].view(-1, 1, 1, 1) * noise
        with torch.autocast(PLACE.type, getattr(torch, case.dtype), case.dtype != "float32"):
            out = call(noisy, t.float(), {})
        loss = (out.float() - noise).square().mean()
        torch_networks.update(net, adam, average, loss)
        return loss.detach()

    return take


# --- measuring ------------------------------------------------------------------------------------


def measure(case: Case, ours: Call, ways: dict[str, Callable], args: argparse.Namespace) -> dict:
    """Times of every way, and by the way operations and difference."""
    seen = contextlib.nullcontext() if case.kind == "train" else torch.inference_mode()
    with seen:
        calls, first = {"ours": ours}, {}
        for name, make in ways.items():
            start = time.perf_counter()
            try:
                with within(min(args.compile_seconds, args.end - time.perf_counter())):
                    calls[name] = synchronized(make())
                    calls[name]()
            except Late:
                calls.pop(name, None)
                print(f"  {name} of torch is left out: not ready after "
                      f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
            except RuntimeError as error:  # of memory, of the compiler
                calls.pop(name, None)
                print(f"  {name} of torch is left out: {str(error).splitlines()[0]}", flush=True)
            first[name] = time.perf_counter() - start
        found = dict(operations=operations(calls), differ=differ(case, calls), first=first)
        taken = alternate(calls, args.repeats, args.case_seconds)
    return found | dict(taken=taken)


def operations(calls: dict[str, Call]) -> float:
    """Of products and convolutions, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    if "eager" not in calls:
        return float("nan")
    with FlopCounterMode(display=False) as counter:
        calls["eager"]()
    return counter.get_total_flops()


def differ(case: Case, calls: dict[str, Call]) -> float:
    """Distance of the results over the length of torch's."""
    if case.kind == "train" or "eager" not in calls:
        return float("nan")
    ours, theirs = np.float64(calls["ours"]()), calls["eager"]().double().cpu().numpy()
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def report(case: Case, found: dict, first: float, args: argparse.Namespace) -> None:
    """Prints the line of a case and appends its rows."""
    taken, name = found["taken"], ":".join(map(str, case))
    medians = {way: 1e3 * float(np.median(seconds)) for way, seconds in taken.items()}
    columns = "  ".join(f"{way} {value:.2f}" for way, value in medians.items())
    best = min((value for way, value in medians.items() if way != "ours"), default=float("nan"))
    rate = found["operations"] / medians["ours"] / 1e9
    print(
        f"{name:34} ms: {columns}  ratio {medians['ours'] / best:.2f}  ours {rate:.1f} TFLOP/s  "
        f"differ {found['differ']:.1e}  ({first:.0f} s to the first)",
        flush=True,
    )
    fresh = not args.csv.exists()
    with args.csv.open("a", newline="") as file:
        rows = csv.writer(file)
        if fresh:
            rows.writerow(
                "device,case,way,median_ms,min_ms,max_ms,calls,first_s,tflop,differ".split(",")
            )
        for way, seconds in taken.items():
            times = [medians[way], 1e3 * seconds.min(), 1e3 * seconds.max()]
            waited = first if way == "ours" else found["first"][way]
            rows.writerow(
                [jax.devices()[0].device_kind, name, way, *(f"{n:.3f}" for n in times),
                 len(seconds), f"{waited:.1f}", f"{found['operations'] / 1e12:.4f}",
                 f"{found['differ']:.2e}"]
            )  # fmt: skip


def product(size: int) -> None:
    """The rate of a large product on both sides: what a case can reach at best."""
    a, b = (torch.randn(size, size, device=PLACE, dtype=torch.bfloat16) for _ in range(2))
    program, given = jax.jit(jax.numpy.matmul), on_jax((a, b))
    calls = {"ours": lambda: program(*given), "torch": synchronized(lambda: a @ b)}
    taken = alternate(calls, 10)
    rates = {way: 2 * size**3 / np.median(seconds) / 1e12 for way, seconds in taken.items()}
    said = ", ".join(f"{way} {rate:.1f}" for way, rate in rates.items())
    print(f"a bfloat16 product of {size} x {size}, TFLOP/s: {said}", flush=True)


def together(group: list[Case], args: argparse.Namespace) -> None:
    """Measures cases that share a network; ours are compiled at the same time."""
    case = group[0]
    compiled = case.network in args.compile
    if case.kind == "train":
        made = [training(case, args.toy, compiled) for case in group]
    else:
        model = model_of(case.network, case.dtype, args.toy)
        tensors = weights(model, case.dtype)
        params, twin = on_jax(tensors), Twin(model, tensors, case.dtype)
        made = [sides(case, model, params, twin, compiled) for case in group]

    def first(call):
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    pool = ThreadPoolExecutor(len(group))
    waits = list(pool.map(first, [side.ours for side in made]))
    for case, side, wait in zip(group, made, waits, strict=True):
        report(case, measure(case, side.ours, side.theirs, args), wait, args)


def parse(text: str) -> list[Case]:
    """Cases of a list in text.

    Raises:
        ValueError: it is none.
    """
    found = []
    for part in text.split(","):
        fields = part.split(":")
        good = len(fields) == 4 and fields[0] in TOY and fields[2].isdigit()
        if not good or fields[1] not in ("forward", "sample", "train"):
            raise ValueError(
                f"a case is NETWORK:KIND:BATCH:DTYPE with one of {', '.join(TOY)} and forward, "
                f"sample or train, got {part!r}"
            )
        found.append(Case(fields[0], fields[1], int(fields[2]), fields[3]))
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=parse, default=CASES)
    parser.add_argument("--seconds", type=float, default=600, help="for everything")
    parser.add_argument("--case_seconds", type=float, default=3, help="for the turns of a case")
    parser.add_argument("--compile_seconds", type=float, default=40, help="for torch to compile")
    parser.add_argument("--compile", default="dit-xl-2,dit-b-2", help="networks, for torch")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--csv", type=Path, default=Path("gpu.csv"), help="appended to")
    parser.add_argument("--toy", action="store_true", help="tiny networks, to try it")
    args = parser.parse_args()
    args.compile = args.compile.split(",")
    args.end = time.perf_counter() + args.seconds
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, torch {torch.__version__} on {PLACE}")
    try:
        with within(args.seconds):
            product(512 if args.toy else 8192)
            same = lambda case: (case.network, case.dtype, case.kind == "train")  # noqa: E731
            for _, group in groupby(args.cases, same):
                together(list(group), args)
    except Late:
        print("time is up; the other cases are left out", flush=True)
        os._exit(0)  # whatever still compiles


if __name__ == "__main__":
    main()
