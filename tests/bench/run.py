"""CPU per request of the gateway beside a plain nginx reverse proxy; `make bench`.

Both proxies are pinned to one core, the stub upstream and the load to the others; targets alternate
inside a round and the median of the rounds counts. The figure to read is CPU microseconds per
request of the whole process tree: wall-clock times on a shared machine are worth comparing only
within one run. Everything is on loopback, on free ports, and bounded in time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
PATH = "/openai/v1/responses"
DELTAS = 200
TICKS = os.sysconf("SC_CLK_TCK")
NEEDED = {"nginx": "nginx-light", "wrk": "wrk", "gcc": "gcc libc6-dev", "taskset": "util-linux"}


@dataclass(frozen=True)
class Target:
    """One proxy under measure: where it listens, the key it wants, its root process."""

    name: str
    port: int
    key: str
    pid: int


@dataclass(frozen=True)
class Sample:
    """One run of load against one target. `cpu_us` is per request, or per stream."""

    target: str
    load: str
    requests: int
    errors: int
    cpu_us: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class Plan:
    """How much to measure: numbers in flight, streams at once, seconds and rounds of each."""

    in_flight: tuple[int, ...]
    streams: int
    seconds: float
    rounds: int


FULL = Plan((1, 16, 64, 256), 32, 5.0, 3)
QUICK = Plan((1, 64), 8, 1.0, 1)


class BenchError(Exception):
    """Something the measurement needs did not work; the message says what."""


def main() -> int:
    options = arguments()
    missing = sorted(package for tool, package in NEEDED.items() if shutil.which(tool) is None)
    if missing:
        print(f"bench needs more programs: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    plan = QUICK if options.quick else FULL
    try:
        with tempfile.TemporaryDirectory(prefix="gatepass-bench-") as folder:
            samples, memory = measure(plan, Path(folder), nginx_only=options.nginx_only)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return report(samples, memory, plan)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a look of half a minute, one round")
    parser.add_argument("--nginx-only", action="store_true", help="without the gateway")
    return parser.parse_args()


def measure(plan: Plan, folder: Path, *, nginx_only: bool) -> tuple[list[Sample], dict[str, float]]:
    """Every load against every target, alternating; and the resident megabytes at the end."""
    cores = sorted(os.sched_getaffinity(0))
    proxy_core, load_cores = cores[-1], cores[:-1] or cores
    if len(cores) == 1:
        print("only one core: proxy and load share it", file=sys.stderr)
    stub, streams = compiled("stub", folder), compiled("streams", folder)
    os.sched_setaffinity(0, load_cores)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(stub_upstream(stub))
        targets = [stack.enter_context(nginx(folder / "nginx", upstream, proxy_core))]
        if not nginx_only:
            targets.append(stack.enter_context(gateway(folder / "data", upstream, proxy_core)))
        for target in targets:  # first requests pay for what later ones find ready
            json_load(target, 8, 1.0)
            stream_load(target, 4, 0.5, streams)
        samples = []
        for number in range(plan.rounds):
            print(f"round {number + 1} of {plan.rounds}", file=sys.stderr)
            for size in plan.in_flight:
                samples += [json_load(target, size, plan.seconds) for target in targets]
            samples += [stream_load(t, plan.streams, plan.seconds, streams) for t in targets]
        return samples, {target.name: resident_mb(target.pid) for target in targets}


def compiled(name: str, folder: Path) -> Path:
    program = folder / name
    command = ["gcc", "-O2", "-o", str(program), str(HERE / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"gcc: {done.stderr}")
    return program


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """Start a process, and end it on leaving."""
    process = subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(25)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def stub_upstream(program: Path) -> Iterator[int]:
    command = [str(program), "0", "-n", str(DELTAS)]
    with running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def nginx(folder: Path, upstream: int, core: int) -> Iterator[Target]:
    folder.mkdir()
    port = free_port()
    text = (HERE / "nginx.conf.tmpl").read_text()
    for mark, value in {"@DIR@": folder, "@PORT@": port, "@STUB@": upstream}.items():
        text = text.replace(mark, str(value))
    configuration = folder / "nginx.conf"
    configuration.write_text(text)
    command = ["taskset", "-c", str(core), "nginx", "-p", str(folder), "-c", str(configuration)]
    with running(command, stderr=subprocess.DEVNULL) as process:
        wait_for(port, process, "nginx", folder / "nginx.log")
        yield Target("nginx", port, "none", process.pid)


@contextlib.contextmanager
def gateway(folder: Path, upstream: int, core: int) -> Iterator[Target]:
    """`gatepass serve` as an operator runs it: SQLite with full durability, one app with a key."""
    folder.mkdir(mode=0o700)
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEPASS_")} | {
        "GATEPASS_LISTEN": f"127.0.0.1:{port}",
        "GATEPASS_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "GATEPASS_DATA_DIR": str(folder),
        "GATEPASS_UPSTREAM_URL": f"http://127.0.0.1:{upstream}/openai/v1/",
        "GATEPASS_UPSTREAM_API_KEY": "bench",
        "GATEPASS_LOG_LEVEL": "warning",
    }
    program = str(Path(sys.executable).parent / "gatepass")
    for words in (["migrate"], ["apps", "create", "bench"]):
        done = subprocess.run(
            [program, *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"gatepass {' '.join(words)}: {done.stdout}{done.stderr}")
    key = re.search(r"gp_app_[\w-]+", done.stdout)
    if key is None:
        raise BenchError(f"gatepass apps create printed no key: {done.stdout}")
    log = folder / "log"
    with (
        log.open("w") as output,
        running(
            ["taskset", "-c", str(core), program, "serve"],
            env=environment,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        wait_for(port, process, "gatepass serve", log)
        yield Target("gatepass", port, key.group(), process.pid)


def wait_for(port: int, process: subprocess.Popen[str], name: str, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise BenchError(f"{name} did not start: {log.read_text()[-2000:] if log.exists() else ''}")


def json_load(target: Target, in_flight: int, seconds: float) -> Sample:
    """Post `body.json` with so many connections, each with one request in flight."""
    url = f"http://127.0.0.1:{target.port}{PATH}"
    command = ["wrk", "-t", "1", "-c", str(in_flight), "-d", f"{seconds:.0f}s", "--timeout", "10s"]
    environment = os.environ | {"BENCH_KEY": target.key, "BENCH_BODY": str(HERE / "body.json")}
    before = cpu_seconds(target.pid)
    done = subprocess.run(
        [*command, "-s", str(HERE / "post.lua"), url],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 30,
    )
    spent = cpu_seconds(target.pid) - before
    line = re.search(r"^JSON (\{.*\})$", done.stdout, re.MULTILINE)
    if line is None:
        raise BenchError(f"wrk: {done.stdout}{done.stderr}")
    found = json.loads(line.group(1))
    return Sample(
        target.name,
        f"json/{in_flight}",
        found["requests"],
        found["errors"],
        1e6 * spent / max(found["requests"], 1),
        found["p50_us"],
        found["p99_us"],
    )


def stream_load(target: Target, connections: int, seconds: float, program: Path) -> Sample:
    """Read streams of 200 deltas, one after the other on each connection."""
    words = [str(target.port), PATH, target.key, str(connections), str(seconds)]
    before = cpu_seconds(target.pid)
    done = subprocess.run(
        [str(program), *words], capture_output=True, text=True, check=False, timeout=seconds + 30
    )
    spent = cpu_seconds(target.pid) - before
    if done.returncode:
        raise BenchError(f"streams: {done.stderr}")
    found = json.loads(done.stdout)
    return Sample(
        target.name,
        f"stream/{connections}",
        found["streams"],
        found["errors"],
        1e6 * spent / max(found["streams"], 1),
        found["first_event_p50_us"],
        found["first_event_p99_us"],
    )


def tree(root: int) -> list[int]:
    """`root` and everything below it."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for pid in found:  # grows while it is walked: breadth first
        found += parents.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of the process tree so far, with children that have ended."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(value) for value in fields[11:15])
    return total / TICKS


def resident_mb(root: int) -> float:
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(re.search(r"VmRSS:\s+(\d+)", status).group(1))  # type: ignore[union-attr]
    return round(total / 1024, 1)


def report(samples: list[Sample], memory: dict[str, float], plan: Plan) -> int:
    """Print the medians as a table and as one JSON line; 1 when any request failed."""
    loads = list(dict.fromkeys(sample.load for sample in samples))
    names = list(memory)
    rows = [medians(samples, load, name) for load in loads for name in names]
    print(f"{'load':<12} {'target':<10} {'CPU µs':>9} {'× nginx':>8} {'p50 µs':>9} {'p99 µs':>9}")
    for row in rows:
        base = next(r for r in rows if r["load"] == row["load"] and r["target"] == "nginx")
        times = float(row["cpu_us"]) / float(base["cpu_us"]) if base["cpu_us"] else 0.0
        print(
            f"{row['load']:<12} {row['target']:<10} {row['cpu_us']:>9} {times:>8.1f} "
            f"{row['p50_us']:>9} {row['p99_us']:>9}"
        )
    print("resident: " + ", ".join(f"{name} {size} MB" for name, size in memory.items()))
    failed = sum(sample.errors for sample in samples)
    print(f"errors: {failed}; CPU is per request, or per stream of {DELTAS} deltas")
    print(json.dumps({"plan": asdict(plan), "medians": rows, "resident_mb": memory}))
    if failed:
        print("bench: some requests failed, the figures do not count", file=sys.stderr)
    return 1 if failed else 0


def medians(samples: list[Sample], load: str, name: str) -> dict[str, object]:
    chosen = [sample for sample in samples if (sample.load, sample.target) == (load, name)]
    row: dict[str, object] = {"load": load, "target": name}
    for figure in ("requests", "errors", "cpu_us", "p50_us", "p99_us"):
        row[figure] = round(statistics.median(getattr(sample, figure) for sample in chosen))
    return row


if __name__ == "__main__":
    sys.exit(main())
