"""``gadgetron-inr replay``: send a stored scan to a server, as ``gadgetron_ismrmrd_client`` does, and store its images."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ismrmrd

    from gadgets.client import ReplayResult
    from gadgets.scanfile import Scan
    from gadgets.stream import ConfigFile, ConfigScript

logger = logging.getLogger(__name__)

_COMPRESSION = (("-P", "--precision", "0"), ("-T", "--tolerance", "0"), ("-Z", "--ZFP", "0"))
"""Options of the stock client for compressed readouts, which is not done here: its "none" is understood, anything else refused."""
_NONE = {"0", "0.0", "false", "no", "off"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command; short options mean what they mean in the stock client."""
    parser = subparsers.add_parser(
        "replay",
        help="send a stored scan to a server and store the images",
        description="Send an ISMRMRD file to a Gadgetron or to `gadgetron-inr serve`, and store the images that come back.",
        epilog="Exit status 1 on any error, also when the server sent no image.",
    )
    parser.add_argument("scan", nargs="?", metavar="SCAN.h5", help="the scan (or -f)")
    parser.add_argument("-f", "--filename", metavar="SCAN.h5", help="the scan")
    parser.add_argument("-c", "--config", default="cardiac.xml", metavar="NAME", help="chain that the server knows (default: %(default)s)")
    parser.add_argument("-C", "--config-local", metavar="FILE", help="chain file of this machine, sent as a whole")
    parser.add_argument("-a", "--address", default="localhost", help="the server's host (default: %(default)s)")
    parser.add_argument("-p", "--port", type=int, default=9002, help="the server's port (default: %(default)s)")
    parser.add_argument("-o", "--outfile", default="out.h5", metavar="OUT.h5", help="file for the images (default: %(default)s)")
    parser.add_argument("-g", "--in-group", default="/dataset", metavar="GROUP", help="group of the scan (default: %(default)s)")
    parser.add_argument("-G", "--out-group", metavar="GROUP", help="group for the images (default: date and time)")
    parser.add_argument("-t", "--timeout", type=int, default=10000, metavar="MS", help="wait for the connection, ms (default: %(default)s)")
    parser.add_argument(
        "-l", "--loops", type=int, default=1, metavar="N", help="send the scan N times, into a group each (default: %(default)s)"
    )
    parser.add_argument("-q", "--query", action="store_true", help="dependency query: send the chain without a scan, print the answer")
    parser.add_argument("-Q", "--info", metavar="QUESTION", help="put a question to the server (gadgetron::info), print the answer")
    parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="log details, and tracebacks of errors")
    parser.add_argument("-F", "--outformat", default="h5", metavar="FORMAT", help="format of the images: h5, and no other")
    for short, long, default in _COMPRESSION:
        parser.add_argument(short, long, default=default, help=argparse.SUPPRESS)
    parser.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="override a chain property; can be repeated")
    parser.add_argument(
        "--realtime",
        nargs="?",
        type=float,
        const=1.0,
        metavar="SPEED",
        help="pace readouts by their time stamps, SPEED times as fast as the scanner (default: 1)",
    )
    parser.add_argument("--serve", action="store_true", help="host the chain in this process, on a free port of loopback")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay, or query; 0 when all went well."""
    from gadgets import client
    from gadgets.settings import parse_assignments
    from recon_core.errors import SettingError

    overrides = parse_assignments(args.set)
    _refuse_other_forms(args)
    if args.realtime is not None and not 0 < args.realtime < float("inf"):
        raise SettingError("--realtime", f"{args.realtime}", "Give a factor above 0.")
    if args.timeout < 1 or args.loops < 1:
        field = "-t" if args.timeout < 1 else "-l"
        raise SettingError(field, "is below 1", "Give a value of at least 1.")
    if args.info is not None:
        with _address(args) as (host, port):
            return _print_answer(client.ask(host, port, args.info, 1e-3 * args.timeout))
    config, tick_ms = configuration(args.config, args.config_local, overrides)
    with _address(args, config) as (host, port):
        if args.query:
            return _print_answer(client.query(host, port, config, 1e-3 * args.timeout))
        for number in range(args.loops):
            if number:
                logger.info("loop %d of %d", number + 1, args.loops)
            if _once(args, host, port, config, tick_ms, f" ({number + 1})" if number else ""):
                return 1
    return 0


def _refuse_other_forms(args: argparse.Namespace) -> None:
    """Refuse what the stock client would do and this one does not.

    Raises:
        SettingError: Analyze images, or compressed readouts, asked for.
    """
    from recon_core.errors import SettingError

    if args.outformat != "h5":
        raise SettingError("-F", f"{args.outformat!r}: images are stored as HDF5 only", "Leave it out, or give h5.")
    for short, long, _ in _COMPRESSION:
        value = getattr(args, long.removeprefix("--"))
        if value.lower() not in _NONE:
            raise SettingError(short, f"{value!r}: readouts are sent uncompressed only", "Leave it out.")


@contextlib.contextmanager
def _address(args: argparse.Namespace, config: ConfigFile | ConfigScript | None = None) -> Iterator[tuple[str, int]]:
    """Where the server is: the given one, or one of our own for the time being, which may use the scheduler that this replay names."""
    if not args.serve:
        yield args.address, args.port
        return
    from gadgets.server import Server
    from gadgets.settings import LOCAL
    from gadgets.stream import ConfigScript
    from gadgets.wire_requests import default_application

    executor = _properties(config.text, "sent chain").get("executor", LOCAL) if isinstance(config, ConfigScript) else LOCAL
    application = None if executor == LOCAL else default_application(executors=[executor])
    with Server("127.0.0.1", 0, application=application) as server:
        yield "127.0.0.1", server.port


def configuration(name: str, path: str | None, overrides: dict[str, str]) -> tuple[ConfigFile | ConfigScript, float]:
    """What to send as CONFIG, and the tick of the time stamps for pacing, in ms.

    With overrides a chain of the package is sent as a whole. A settings file named by an override lies on this machine: its
    entries travel as overrides, weaker than the others.

    Raises:
        SettingError: a bad override, or overrides of a chain that is not known here.
    """
    from gadgets import chain
    from gadgets.settings import as_text, read_settings_file
    from gadgets.stream import ConfigFile, ConfigScript
    from recon_core.errors import SettingError

    text = None if path is None else chain.read_text(Path(path))
    packaged = name in chain.known() or f"{name}.xml" in chain.known()
    if not overrides:
        if text is not None:
            return ConfigScript(text), _tick(_properties(text, str(path)))
        return ConfigFile(name), _tick(chain.load_known(name).properties if packaged else {})
    if text is None and not packaged:
        raise SettingError("-s", f"chain {name!r} is not known here, its properties cannot be set", "Give the chain file with -C.")
    entry = chain.load_known(name) if text is None else chain.parse(text, Path(str(path)).name, host=False)
    changes = dict(overrides)
    if changes.get("settings"):
        for key, value in read_settings_file(changes["settings"]).items():
            changes.setdefault(key, as_text(value))
        changes["settings"] = ""
    # A settings file of the chain's own lies on the server: only there can the whole be checked.
    if not entry.properties.get("settings") or "settings" in changes:
        entry.settings(changes)
    return ConfigScript(chain.with_overrides(entry, changes)), _tick({**entry.properties, **changes})


def _properties(text: str, path: str) -> dict[str, str]:
    """Properties of a chain file; those of a chain without our node are not ours to read."""
    from gadgets import chain
    from recon_core.errors import SettingError

    try:
        return chain.parse(text, path, host=False).properties
    except SettingError as error:
        logger.info("sent as it is, for the server to judge: %s", error)
        return {}


def _tick(properties: Mapping[str, str]) -> float:
    """Tick of the time stamps, ms."""
    from gadgets.settings import ChainSettings
    from recon_core.options import build

    return build(ChainSettings, {key: value for key, value in properties.items() if key == "time_tick_ms"}).time_tick_ms


def _once(args: argparse.Namespace, host: str, port: int, config: ConfigFile | ConfigScript, tick_ms: float, loop: str) -> int:
    """One replay of the scan, into a group of its own; its report is printed."""
    from gadgets import client
    from gadgets.scanfile import ImageWriter, read_scan

    scan = read_scan(_scan_path(args), args.in_group)
    group = (args.out_group or dt.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")) + loop
    out = Path(args.outfile)
    existed = out.exists()
    count = 0
    try:
        # Opened before anything is sent: a path that cannot be written must not cost a reconstruction.
        with ImageWriter(out, group) as writer, _progress(scan) as progress:

            def keep(image: ismrmrd.Image) -> None:
                nonlocal count
                writer.write(image)
                count += 1
                progress.received(count)

            result = client.replay(
                scan,
                config,
                host,
                port,
                on_image=keep,
                # A server of our own logs what it tells by itself.
                on_text=lambda text: logger.log(logging.DEBUG if args.serve else logging.INFO, "server: %s", text),
                on_sent=progress.sent,
                speed=args.realtime,
                tick_ms=tick_ms,
                timeout=1e-3 * args.timeout,
            )
    finally:
        if not existed and not count:
            out.unlink(missing_ok=True)
    _report(result, out, group)
    return 1 if result.error else 0


def _scan_path(args: argparse.Namespace) -> str:
    from recon_core.errors import SettingError

    given = [path for path in (args.scan, args.filename) if path is not None]
    if len(given) != 1:
        raise SettingError("SCAN.h5", "no scan given" if not given else f"two scans given: {' and '.join(given)}", "Name one scan.")
    if Path(args.outfile).resolve() == Path(given[0]).resolve():
        raise SettingError("-o", f"{args.outfile} is the scan itself", "Name another file for the images.")
    return str(given[0])


def _report(result: ReplayResult, out: Path, group: str) -> None:
    if result.images:
        series = ", ".join(f"{count} in series {index}" for index, count in sorted(result.series.items()))
        print(f"{result.images} images ({series}) in {out}, group {group!r}")
        print(f"{result.readouts} readouts, {result.seconds:.1f} s, last image {result.latency:.2f} s after the last readout")
    if result.lags:
        from gadgets.online.status import quantiles

        print(f"lag of {len(result.lags)} provisional images, from a frame's last readout sent to its image received here:")
        print("| " + " | ".join(quantiles(result.lags)) + " |\n" + "| --- " * len(quantiles(result.lags)) + "|")
        print("| " + " | ".join(f"{1e3 * lag:.0f} ms" for lag in quantiles(result.lags).values()) + " |")
    if result.error:
        print(f"error: {result.error}", file=sys.stderr)


def _print_answer(result: ReplayResult) -> int:
    for text in result.texts:
        print(text)
    if not result.texts and not result.error:
        logger.info("the server had nothing to say")
    if result.error and result.error not in result.texts:
        print(f"error: {result.error}", file=sys.stderr)
    return 1 if result.error else 0


class _Progress:
    """Readouts sent and images received, on a terminal; nothing elsewhere."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self.bar = bar
        self.task = task

    def sent(self, readouts: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=readouts)

    def received(self, images: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, images=images)


@contextlib.contextmanager
def _progress(scan: Scan) -> Iterator[_Progress]:
    if not sys.stdout.isatty():
        yield _Progress()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = ("readouts", BarColumn(), MofNCompleteColumn(), TextColumn("images {task.fields[images]}"), TimeElapsedColumn())
    with Progress(*columns) as bar:
        yield _Progress(bar, bar.add_task("replay", total=scan.n_acquisitions, images=0))
