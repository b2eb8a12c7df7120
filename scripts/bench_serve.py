"""Measure `rtdetr serve` over loopback: requests per second and latency at several numbers of clients, and SIGTERM.

    python scripts/bench_serve.py MODEL IMAGE_FOLDER [--clients 1 4 16] [--seconds 20] [--batch-sizes 1 8] [--json FILE]

Each client sends one image per request over one open connection, and the next one as soon as it is answered. The server
runs in another process, once for each largest batch size. At the end of each, it gets SIGTERM while all clients send:
a request that was sent and not answered completely counts as lost, a refused connection does not.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rtdetr_tool.data.image_formats import is_image


class Clients:
    """Threads that send images until `stop` is called or the server refuses connections."""

    def __init__(self, port: int, images: Sequence[bytes], count: int) -> None:
        self.port, self.images = port, images
        self.latencies: list[float] = []
        self.outcomes: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while not self._stopping.is_set():
            number += 1
            try:
                if connection.sock is None:
                    connection.connect()
            except ConnectionRefusedError:
                self.outcomes["refused"] += 1
                return
            start = time.perf_counter()
            try:
                connection.request("POST", "/predict?threshold=0.3", self.images[number % len(self.images)])
                answer = connection.getresponse()
                json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.outcomes[f"lost: {type(error).__name__}"] += 1
                connection.close()
                continue
            self.outcomes[str(answer.status)] += 1
            self.latencies.append(time.perf_counter() - start)


@contextmanager
def running(model: str, options: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server process and its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "spec.yaml")
        spec.write_text(f"results_dir: {folder}\n")
        command = [sys.executable, "-m", "rtdetr_tool", "serve", "-e", str(spec), "--quiet", *options]
        process = subprocess.Popen([*command, f"serve.checkpoint={model}", f"serve.port={port}"])
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                    connection.request("GET", "/health/ready")
                    if connection.getresponse().status == 200:
                        connection.close()
                        break
                time.sleep(0.2)
            else:
                raise SystemExit("the server did not start")
            yield process, port
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Time that the process has used on all cores so far, from Linux's /proc."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    process: subprocess.Popen[bytes], port: int, images: Sequence[bytes], count: int, seconds: float
) -> dict[str, object]:
    """One row: requests per second, latency and CPU time of `count` clients."""
    warm_up = Clients(port, images, count)
    time.sleep(min(2.0, seconds / 4))
    warm_up.stop()
    start, used = time.perf_counter(), cpu_seconds(process)
    clients = Clients(port, images, count)
    time.sleep(seconds)
    clients.stop()
    elapsed, used = time.perf_counter() - start, cpu_seconds(process) - used
    milliseconds = sorted(1000 * value for value in clients.latencies)
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive") if len(milliseconds) > 1 else milliseconds * 99
    return {
        "clients": count,
        "requests": len(milliseconds),
        "per_second": round(len(milliseconds) / elapsed, 2),
        "p50_ms": round(cuts[49], 1),
        "p95_ms": round(cuts[94], 1),
        "cpu_ms_per_request": round(1000 * used / max(1, len(milliseconds)), 1),
        "outcomes": dict(clients.outcomes),
    }


def end_under_load(
    process: subprocess.Popen[bytes], port: int, images: Sequence[bytes], count: int
) -> dict[str, object]:
    """SIGTERM while all clients send: what became of their requests, and the exit code."""
    clients = Clients(port, images, count)
    time.sleep(3)
    start = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    code = process.wait(600)
    seconds = time.perf_counter() - start
    clients.join()
    lost = sum(number for outcome, number in clients.outcomes.items() if outcome.startswith("lost"))
    outcomes = dict(clients.outcomes)
    return {"clients": count, "exit_code": code, "seconds": round(seconds, 2), "lost": lost, "outcomes": outcomes}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="further fields, such as serve.max_delay=10")
    arguments = parser.parse_intermixed_args()
    images = [path.read_bytes() for path in sorted(arguments.images.iterdir()) if is_image(path.name)]
    report: dict[str, object] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "servers": []}
    lost = 0
    for size in arguments.batch_sizes:
        with running(arguments.model, [f"serve.max_batch_size={size}", *arguments.options]) as (process, port):
            rows = [measure(process, port, images, count, arguments.seconds) for count in arguments.clients]
            end = end_under_load(process, port, images, max(arguments.clients))
        report["servers"] = [*report["servers"], {"max_batch_size": size, "rows": rows, "sigterm": end}]
        lost += int(end["lost"] != 0 or end["exit_code"] != 0)
        for row in rows:
            print(f"batch {size}: {row}", flush=True)
        print(f"batch {size}, SIGTERM: {end}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
