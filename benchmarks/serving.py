"""The server under load: shared evaluations beside single ones, mixed requests, abuse, kills.

    python -m benchmarks.serving                 # all
    python -m benchmarks.serving --only=load     # pictures/s and CPU seconds, in turn
    python -m benchmarks.serving --only=abuse --requests=10000
    python -m benchmarks.serving --only=kill

Servers are real processes on loopback, with the bundled 4-step digits. `load` measures in turn, so
that other work on the machine falls on all alike; its ratios mean more than its rates. `abuse`
mixes requests with clients that leave, send rubbish, or stop reading. Every picture that is
answered is compared with `model.draw`. It exits with 1 if any is wrong, or anything is lost.
"""

import argparse
import asyncio
import collections
import contextlib
import io
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
from PIL import Image

MODEL = "digits_4step"
PLAIN = [dict(solver="ddim", steps=4)]
MIXED = [
    dict(solver=solver, steps=steps)
    for solver in ("ddim", "unipc_2", "ddpm", "dpm_solver++_2m")
    for steps in (2, 4, 6)
]
"""Of 4 evaluations on average, as `PLAIN`."""
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A server process.

    Args:
        *flags: of `python -m ddim_jax.serve`.
    """

    def __init__(self, *flags: str, port: int = 0):
        self._errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ddim_jax.serve", f"--checkpoint={MODEL}", f"--port={port}",
             *flags],
            stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        line = ""
        while "serves" not in line:
            line = self.process.stdout.readline()
            if not line:
                sys.exit(f"no server: {self.errors()}")
        self.port = int(line.split()[0].rpartition(":")[2])
        self.ready = line.strip()

    def seconds(self) -> float:
        """CPU seconds of the process so far."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def metrics(self) -> dict[str, float]:
        """What /metrics says, over all labels."""
        found: dict[str, float] = collections.Counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            for line in answer.read().decode().splitlines():
                if not line.startswith("#"):
                    name, value = line.rsplit(" ", 1)
                    found[name.partition("{")[0]] += float(value)
        return found

    def errors(self) -> str:
        """What it wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def stop(self) -> str:
        """Ends it by SIGTERM; what it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        return self.errors()


class Client:
    """One connection, kept open, that speaks as little HTTP as it needs."""

    def __init__(self, port: int):
        self._port, self._writer = port, None

    async def ask(self, body: bytes, kind: str = "image/png") -> tuple[int, bytes]:
        """Status and content of the answer."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request(body, kind))
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head.split(None, 2)[1])
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        content = await self._reader.readexactly(int(fields[b"content-length"]))
        if fields.get(b"connection") == b"close":
            self.close()
        return status, content

    async def send(self, data: bytes) -> asyncio.StreamReader:
        """Sends bytes over a connection of their own, and gives its reader."""
        self.close()
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(data)
        await self._writer.drain()
        return self._reader

    def close(self) -> None:
        """Leaves."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def request(body: bytes, kind: str = "image/png") -> bytes:
    """A request to draw."""
    return (
        f"POST /draw HTTP/1.1\r\nhost: localhost\r\naccept: {kind}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


class Wanted:
    """What every picture must be: `model.draw`, made once for each of a few requests."""

    def __init__(self, recipes: list[dict], seeds: int = 20):
        import ddim_jax

        model = ddim_jax.load(MODEL)
        self.bodies, self.pictures = [], []
        for recipe in recipes:
            for seed in range(seeds):
                body = dict(label=seed % 10, seed=seed) | recipe
                self.bodies.append(json.dumps(body).encode())
                self.pictures.append(model.draw(**body)[0, ..., 0])

    def difference(self, number: int, content: bytes) -> int:
        """Of an answer, the greatest of any pixel."""
        found = np.asarray(Image.open(io.BytesIO(content)))
        return int(np.abs(found.astype(int) - self.pictures[number]).max())


# --- load -----------------------------------------------------------------------------------------


async def drive(port: int, clients: int, count: int, bodies: list[bytes]) -> list[float]:
    """So many clients ask in turn until all are answered; seconds of each."""
    left, taken = iter(range(count)), []

    async def one():
        client = Client(port)
        for number in left:
            began = time.perf_counter()
            status, content = await client.ask(bodies[number % len(bodies)])
            assert status == 200, content
            taken.append(time.perf_counter() - began)
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return taken


def load(args: argparse.Namespace) -> bool:
    """Rates, CPU seconds of a picture, 95th percentiles; medians over rounds, in turn."""
    rng = random.Random(0)
    mixed = [json.dumps(dict(label=i % 10, seed=i) | MIXED[i % len(MIXED)]) for i in range(240)]
    rng.shuffle(mixed)
    plain = [json.dumps(dict(label=i % 10, seed=i) | PLAIN[0]) for i in range(240)]
    plain, mixed = ([body.encode() for body in bodies] for bodies in (plain, mixed))
    from ddim_jax import parallel

    parallel.use_cpu_cores()
    parallel.use_compilation_cache()
    single, shared = Server("--sizes=1"), Server()
    print(single.ready, shared.ready, sep="\n", flush=True)
    cases = {
        "one at a time, 1 client": (single, 1, plain),
        "one at a time, 32 clients": (single, 32, plain),
        "shared, 1 client": (shared, 1, plain),
        "shared, 8 clients": (shared, 8, plain),
        "shared, 32 clients": (shared, 32, plain),
        "shared, 32 clients, mixed": (shared, 32, mixed),
    }
    alone = {"model.draw of 1": in_process(1), "model.draw of 32": in_process(32)}
    rounds: dict[str, list] = {name: [] for name in [*cases, *alone]}
    for server, clients, bodies in cases.values():  # not counted
        asyncio.run(drive(server.port, clients, 48, bodies))
    for _ in range(args.rounds):
        for name, (server, clients, bodies) in cases.items():
            before, cpu, began = server.metrics(), server.seconds(), time.perf_counter()
            taken = asyncio.run(drive(server.port, clients, args.pictures, bodies))
            whole = time.perf_counter() - began
            cpu = (server.seconds() - cpu) / args.pictures
            p95 = statistics.quantiles(taken, n=20)[-1]
            evaluations, runs = (
                server.metrics()[name] - before[name]
                for name in ("ddim_jax_evaluations_total", "ddim_jax_runs_total")
            )
            rounds[name].append((args.pictures / whole, cpu, p95, evaluations / runs))
        for name, measure in alone.items():
            rounds[name].append(measure())
    print(f"{'':28} pictures/s   CPU ms a picture   p95 s   pictures an evaluation")
    for name, values in rounds.items():
        rate, cpu, p95, many = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:28} {rate:10.1f} {1e3 * cpu:18.1f} {p95:7.2f} {many:24.1f}", flush=True)
    ratios = {
        "mixed / unmixed, rate": ("shared, 32 clients, mixed", "shared, 32 clients", 0),
        "one at a time / shared, CPU": ("one at a time, 32 clients", "shared, 32 clients", 1),
        "model.draw of 1 / shared, CPU": ("model.draw of 1", "shared, 32 clients", 1),
        "p95 of shared / of one batch": ("shared, 32 clients", "model.draw of 32", 2),
    }
    for text, (a, b, column) in ratios.items():
        each = [x[column] / y[column] for x, y in zip(rounds[a], rounds[b], strict=True)]
        print(f"{text}: {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})")
    compiled = shared.metrics()["ddim_jax_compilations_after_start_total"]
    print(f"compiled after the start: {compiled:.0f}")
    errors = single.stop() + shared.stop()
    return not compiled and "Traceback" not in errors


def in_process(size: int):
    """Measures `model.draw` of so many in this process: rates as of `load`."""
    import ddim_jax

    model = ddim_jax.load(MODEL)
    asked, calls = dict(label=list(range(10)), solver="ddim", steps=4), max(1, 64 // size)
    model.draw(size, **asked)

    def measure():
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(calls):
            model.draw(size, **asked)
        whole, cpu = (time.perf_counter() - began) / calls, (time.process_time() - cpu) / calls
        return size / whole, cpu / size, whole, size

    return measure


# --- abuse ----------------------------------------------------------------------------------------

RUBBISH = [
    request(b'{"solver": "dimm"}'), request(b"{"), request(b'{"guidance_scale": NaN}'),
    request(b"[" * 30_000), request(b'{"num": 10000000}'), request(b"\xff" * 1000),
    b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"POST /draw HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n",
    b"POST /draw HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    b"BREW /pot HTCPCP/1.0\r\n\r\n", bytes(2000),
]  # fmt: skip


async def abuse_with(
    port: int, count: int, wanted: Wanted, clients: int = 32
) -> collections.Counter:
    """Asks, well and badly; what came of it by kind."""
    seen, left, rng = collections.Counter(), iter(range(count)), random.Random(0)

    async def well(client):
        number = rng.randrange(len(wanted.bodies))
        status, content = await client.ask(wanted.bodies[number])
        if status != 200:
            return f"answered {status}"
        return "right" if wanted.difference(number, content) <= 1 else "WRONG"

    async def leaves(client):
        body = json.dumps(dict(num=8, steps=8, seed=rng.randrange(1000))).encode()
        await client.send(request(body))
        await asyncio.sleep(rng.random() / 5)
        client.close()
        return "left before its answer"

    async def half(client):
        await client.send(request(b" " * 500)[: -rng.randrange(1, 500)])
        client.close()
        return "left in its request"

    async def rubbish(client):
        reader = await client.send(rng.choice(RUBBISH))
        head = await asyncio.wait_for(reader.read(100), 30)
        client.close()
        status = head.split(None, 2)[1].decode() if head.startswith(b"HTTP/1.1 ") else "closed"
        return "rubbish, told 4xx" if status[:1] in ("4", "c") else f"RUBBISH, told {status}"

    async def deaf(client):
        body = json.dumps(dict(num=16, steps=4, seed=rng.randrange(1000))).encode()
        kind = rng.choice(["application/x-npz", "text/event-stream", "application/json"])
        reader = await client.send(request(body, kind))
        await asyncio.wait_for(reader.read(10), 60)
        await asyncio.sleep(rng.random())
        client.close()
        return "stopped reading"

    async def one():
        client = Client(port)
        for _ in left:
            work = rng.choices([well, leaves, half, rubbish, deaf], [70, 8, 8, 8, 6])[0]
            try:
                seen[await work(client)] += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                seen[f"{work.__name__}: {type(error).__name__}"] += 1
                client.close()
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return seen


def abuse(args: argparse.Namespace) -> bool:
    """Many requests, a third of them bad; memory, and what was lost."""
    wanted, server = (
        Wanted([dict(solver=s, steps=n) for s in ("ddim", "ddpm") for n in (1, 2, 3)]),
        Server(),
    )
    seen: collections.Counter = collections.Counter()
    memory, part = [], max(1, args.requests // 10)
    for _ in range(0, args.requests, part):
        seen += asyncio.run(abuse_with(server.port, part, wanted))
        memory.append(server.metrics()["process_resident_memory_bytes"] / 2**20)
    for kind, number in sorted(seen.items()):
        print(f"{number:6} {kind}")
    print("MiB after each tenth:", *(f"{m:.0f}" for m in memory))
    time.sleep(2)
    found = server.metrics()
    left = found["ddim_jax_waiting_pictures"] + found["ddim_jax_live_pictures"]
    print(f"waiting or live at the end: {left:.0f}")
    compiled = found["ddim_jax_compilations_after_start_total"]
    errors = server.stop()
    print(f"compiled after the start: {compiled:.0f}; lines on stderr: {len(errors.splitlines())}")
    print("\n".join(errors.splitlines()[:10]))
    lost = [kind for kind in seen if kind[:5] in ("WRONG", "RUBBI", "well:")]
    flat = memory[-1] < 1.1 * memory[1 if len(memory) > 1 else 0]
    return not (lost or left or compiled or "Traceback" in errors) and flat


def kill(args: argparse.Namespace) -> bool:
    """Kills the server under load and starts it again, several times; clients ask again."""
    wanted, server = Wanted(MIXED[:4]), Server()
    port, seen, stop = server.port, collections.Counter(), False
    servers = [server]

    async def client(first: int):
        mine = Client(port)
        for number in itertools.count(first):
            if stop:
                break
            number %= len(wanted.bodies)
            try:
                status, content = await mine.ask(wanted.bodies[number])
                good = status == 200 and wanted.difference(number, content) <= 1
                seen["right" if good else f"{status}"] += 1
            except (OSError, asyncio.IncompleteReadError):
                seen["asked again"] += 1
                mine.close()
                await asyncio.sleep(0.2)
        mine.close()

    async def killer():
        nonlocal stop
        for _ in range(args.kills):
            await asyncio.sleep(2 + random.random() * 3)
            servers[-1].process.kill()
            servers.append(await asyncio.to_thread(Server, port=port))
        await asyncio.sleep(3)
        stop = True

    async def both():
        await asyncio.gather(killer(), *(client(7 * i) for i in range(16)))

    asyncio.run(both())
    with contextlib.suppress(ProcessLookupError):
        servers[-1].stop()
    print(f"{args.kills} kills:", ", ".join(f"{number} {kind}" for kind, number in seen.items()))
    return set(seen) <= {"right", "asked again"} and seen["right"] > 100


PARTS = {"load": load, "abuse": abuse, "kill": kill}


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--pictures", type=int, default=240, help="of each case and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    good = [work(args) for name, work in PARTS.items() if args.only in (None, name)]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
