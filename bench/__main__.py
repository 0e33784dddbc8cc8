"""The command line: ``python -m bench [--quick] [--only NAME] [--json FILE] [--plot FILE]``."""

import argparse
import dataclasses
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench import callers, calls, globs, groups, loadgen, measures, report
from bench.hub import Hub
from bench.machine import BenchError, Disturbance, describe, filesystem, raise_open_files, scratch_parent
from bench.peers import Nats, Nchan, Nginx, Redis
from bench.process import Server
from bench.turns import FULL, QUICK, Bench, Row

MEASURES = measures.MEASURES | globs.MEASURES | calls.MEASURES | groups.MEASURES
PEERS: tuple[type[Server], ...] = (Nginx, Nchan, Redis, Nats, *callers.PEERS, *groups.PEERS)
RESULTS = Path(__file__).parent / "results"


def arguments(words: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny and without peers: does everything still run?")
    parser.add_argument("--only", action="append", choices=sorted(MEASURES), metavar="NAME",
                        help=f"take this measure only; may be repeated: {', '.join(MEASURES)}")  # fmt: skip
    parser.add_argument("--no-peers", action="store_true", help="measure our own server only")
    parser.add_argument("--repetitions", type=int, metavar="N", help="turns of each contender")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of each turn")
    parser.add_argument(
        "--server", metavar="COMMAND", help="our server's command (default: wayside, beside this Python)"
    )
    parser.add_argument("--folder", type=Path, help="where servers may write; must be on a disk for fsync to count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: bench/results/latest.json; none if --quick")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="default: bench/results/latest.png; none if --quick")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Measure and report. 1 when a measure could not be taken; a missed target alone is not a failure."""
    args = arguments(words)
    if args.server:
        Hub.use(args.server)
    scale = QUICK if args.quick else FULL
    changes = {
        "repetitions": args.repetitions,
        "seconds": args.seconds,
        "peers": False if args.no_peers else None,
    }
    scale = dataclasses.replace(scale, **{key: value for key, value in changes.items() if value is not None})
    folder = Path(tempfile.mkdtemp(prefix="wayside-bench-", dir=args.folder or scratch_parent()))
    bench = Bench(scale, folder, lambda text: print(text, file=sys.stderr, flush=True))
    try:
        raise_open_files(scale.followers_idle + 1000)
        for generator in ("fanload", "ackload", "getload"):
            loadgen.build(generator)
        machine = describe(folder)
        if filesystem(folder) in ("tmpfs", "ramfs"):
            bench.say(f"warning: {folder} is in memory, so fsync costs nothing; pass --folder")
        machine |= {"ours": Hub.version()}
        if scale.peers:
            machine["peers"] = ", ".join(peer.version() for peer in PEERS if not peer.missing())
        rows: list[Row] = []
        disturbance = Disturbance()
        for name, take in MEASURES.items():
            if not args.only or name in args.only:
                rows.extend(take(bench))
        shares = disturbance.shares()
        machine["disturbed by"] = (
            f"other processes {shares['others']:.0%}, hypervisor {shares['stolen']:.0%} of CPU time"
        )
    except BenchError as error:
        bench.say(f"bench: {error}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    print("\n".join(f"{key}: {value}" for key, value in machine.items()), end="\n\n")
    print(report.table(rows, quick=args.quick))
    json_path = args.json or (None if args.quick else RESULTS / "latest.json")
    if json_path:
        report.save(json_path, machine, bench, rows, quick=args.quick)
        bench.say(f"saved {json_path}")
    plot_path = args.plot or (None if args.quick else RESULTS / "latest.png")
    if plot_path and any(row.achieved is not None for row in rows):
        drawn = report.plot(plot_path, machine, rows)
        bench.say(f"saved {plot_path}" if drawn else "no picture: pip install matplotlib")
    return 1 if any(not row.ours for row in rows) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended first
    sys.exit(main())
