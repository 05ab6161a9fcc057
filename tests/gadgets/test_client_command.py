"""``gadgetron-inr replay`` against the embedded server with a reconstruction that takes no time."""

from __future__ import annotations

import sys
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from rich.console import Console

from gadgets import chain, client, settings, wire_requests
from gadgets.cli import build_parser, main
from gadgets.commands import replay
from gadgets.scanfile import image_groups, read_images, read_scan, write_scan
from gadgets.server import Server
from gadgets.stream import ConfigFile, ConfigScript
from recon_core.errors import DataError, SettingError

pytestmark = pytest.mark.timeout(60)
CARDIAC = chain.load("cardiac").text


def mean_images(made, header, items, report):
    """One image a frame of readouts; its pixels tell the settings that arrived."""
    readouts = [item for item in items if isinstance(item, ismrmrd.Acquisition)]
    if header == "<bad/>":
        raise DataError("header", "no encoding", "Write one.")
    report(f"{len(readouts)} readouts with seed {made.seed}")
    for index in range(len(readouts) // made.readouts_per_frame):
        image = ismrmrd.Image.from_array(np.full((4, 4), made.coils, np.float32), transpose=False)
        image.image_index, image.image_series_index = index, 1
        yield image


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> wire_requests.Application:
    made = wire_requests.Application(chain.load_known, chain.parse, settings.chain_settings, mean_images)
    monkeypatch.setattr("gadgets.server.default_application", lambda: made)
    return made


@pytest.fixture
def port(application) -> int:
    with Server("127.0.0.1", 0, application=application) as server:
        yield server.port


@pytest.fixture
def scan(tmp_path: Path) -> str:
    readout = ismrmrd.Acquisition.from_array(np.ones((2, 8), np.complex64), np.zeros((8, 2), np.float32))
    write_scan(tmp_path / "scan.h5", "<header/>", [readout] * 6)
    write_scan(tmp_path / "bad.h5", "<bad/>", [readout] * 6)
    return str(tmp_path / "scan.h5")


def run(*arguments: object) -> int:
    return main(["replay", *map(str, arguments)])


def test_images_are_stored_and_reported(port: int, scan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.h5"
    assert run(scan, "-c", "cardiac.xml", "-p", port, "-o", out, "-G", "run") == 0
    images = read_images(out, "run")
    assert [len(images[1]), images[1][0].data[0, 0, 0, 0]] == [3, 8]
    told = capsys.readouterr()
    assert f"3 images (3 in series 1) in {out}, group 'run'" in told.out
    assert "6 readouts" in told.out
    assert "6 readouts with seed 0" in told.err


def test_short_and_long_options_of_the_stock_client(port: int, scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.xml").write_text(CARDIAC.replace('value="8"', 'value="5"'))
    short = ["-f", scan, "-a", "127.0.0.1", "-p", port, "-C", "mine.xml", "-g", "dataset", "-t", "5000", "-l", "2", "-G", "x"]
    assert run(*short) == 0
    for group in ("x", "x (2)"):
        images = read_images("out.h5", group)[1]
        assert [image.data[0, 0, 0, 0] for image in images] == [5] * 3
    long = ["--filename", scan, "--address", "127.0.0.1", "--port", port, "--config", "cardiac", "--in-group", "/dataset"]
    assert run(*long, "--outfile", "b.h5", "--timeout", "5000", "--loops", "1") == 0
    assert len(image_groups("b.h5")) == 1
    assert image_groups("b.h5")[0].startswith("20")


# Of gadgetron_ismrmrd_client 4.7: letter, name, default; None where it has none or where ours differs by design.
STOCK = [
    *(("q", "query", False), ("v", "verbose", None), ("Q", "info", None), ("p", "port", "9002"), ("a", "address", "localhost")),
    *(("f", "filename", None), ("o", "outfile", "out.h5"), ("g", "in-group", "/dataset"), ("G", "out-group", None)),
    *(("c", "config", None), ("C", "config-local", None), ("l", "loops", "1"), ("t", "timeout", "10000"), ("F", "outformat", "h5")),
    *(("P", "precision", "0"), ("T", "tolerance", "0"), ("Z", "ZFP", "0")),
]


def test_every_option_of_the_stock_client_is_there_under_both_names_with_its_default():
    commands = next(action for action in build_parser()._actions if action.dest == "command").choices
    options = {name: action for action in commands["replay"]._actions for name in action.option_strings}
    for letter, name, default in STOCK:
        assert options[f"-{letter}"] is options[f"--{name}"]
        if default is not None:
            assert str(options[f"-{letter}"].default) == str(default), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-F", "hdr"], "-F: 'hdr': images are stored as HDF5 only"),
        (["-P", "16"], "-P: '16': readouts are sent uncompressed only"),
        (["-T", "0.1"], "-T: '0.1': readouts"),
        (["--ZFP", "true"], "-Z: 'true': readouts"),
    ],
)
def test_what_only_the_stock_client_does_is_refused(port: int, scan: str, tmp_path: Path, capsys, arguments, words):
    assert run(scan, "-p", port, "-o", str(tmp_path / "o.h5"), *arguments) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o.h5").exists()


def test_what_the_stock_client_means_by_nothing_is_understood(port: int, scan: str, tmp_path: Path):
    plain = ["-F", "h5", "-P", "0", "-T", "0.0", "-Z", "false", "-v"]
    assert run(scan, "-p", port, "-o", str(tmp_path / "o.h5"), "-G", "x", *plain) == 0
    assert len(read_images(tmp_path / "o.h5", "x")[1]) == 3


def test_overrides_reach_the_server(
    port: int, scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("readouts_per_frame: 1\ndiscard_readouts: 0\nmatrix: [8, 9]\nseed: 7\n")
    assert run(scan, "-p", port, "-s", "coils=3", "-s", "seed=9", "-s", "settings=mine.yaml", "-o", "o.h5", "-G", "g") == 0
    images = read_images("o.h5", "g")[1]
    assert len(images) == 6, "a settings file that an override names is stronger than the chain's own readouts_per_frame"
    assert images[0].data[0, 0, 0, 0] == 3
    assert "seed 9" in capsys.readouterr().err


def test_entries_of_a_settings_file_travel_with_the_chain(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("readouts_per_frame: 1\nsend_latents: false\ntime_tick_ms: 1\nsolver_settings: {rank: 4}\n")
    config, tick_ms = replay.configuration("cardiac", None, {"settings": str(file), "seed": "3"})
    sent = chain.parse(config.text).settings()
    assert (sent.send_latents, sent.solver_settings, sent.seed, sent.readouts_per_frame) == (False, {"rank": 4}, 3, 1)
    assert (sent.settings, tick_ms) == ("", 1.0)


def test_what_is_sent_as_config(tmp_path: Path):
    assert replay.configuration("cardiac.xml", None, {}) == (ConfigFile("cardiac.xml"), 2.5)
    assert replay.configuration("theirs.xml", None, {}) == (ConfigFile("theirs.xml"), 2.5)
    foreign = tmp_path / "theirs.xml"
    foreign.write_text("<configuration><version>2</version><readers/><writers/><stream/></configuration>")
    assert replay.configuration("x", str(foreign), {}) == (ConfigScript(foreign.read_text()), 2.5)
    ticking = tmp_path / "ticking.xml"
    ticking.write_text(CARDIAC.replace('<property name="seed" value="0"/>', '<property name="time_tick_ms" value="1"/>'))
    assert replay.configuration("x", str(ticking), {}) == (ConfigScript(ticking.read_text()), 1.0)
    at_server = tmp_path / "at_server.xml"
    at_server.write_text(CARDIAC.replace('<property name="seed" value="0"/>', '<property name="settings" value="/there.yaml"/>'))
    config, _ = replay.configuration("x", str(at_server), {"coils": "2"})
    assert chain.parse(config.text).properties["settings"] == "/there.yaml"


def test_overrides_of_a_chain_unknown_here_need_its_file():
    with pytest.raises(SettingError, match=r"'theirs\.xml' is not known here") as caught:
        replay.configuration("theirs.xml", None, {"coils": "2"})
    assert "-C" in caught.value.cure


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "cardac.xml"], "Did you mean 'cardiac.xml'"),
        (["-s", "coilz=1"], "Did you mean 'coils'"),
        (["-s", "coils=0"], "0 is below 1"),
        (["-s", "coils"], "not NAME=VALUE"),
        (["-g", "nothing"], "no group 'nothing'"),
        (["-C", "/no/chain.xml"], "cannot read '/no/chain.xml'"),
        (["--realtime", "0"], "Give a factor above 0"),
        (["--realtime", "nan"], "Give a factor above 0"),
        (["-t", "0"], "-t: is below 1"),
        (["-l", "0"], "-l: is below 1"),
        (["-f", "other.h5"], "two scans given"),
    ],
)
def test_every_error_is_told_with_status_1_and_leaves_no_file(port: int, scan: str, tmp_path: Path, capsys, arguments, words):
    out = tmp_path / "out.h5"
    assert run(scan, "-p", port, "-o", out, *arguments) == 1
    told = capsys.readouterr()
    assert "error: " in told.err
    assert words in told.err
    assert not out.exists()


def test_scan_and_output_must_be_two_files(port: int, scan: str, capsys: pytest.CaptureFixture[str]):
    assert run(scan, "-p", port, "-o", scan) == 1
    assert "is the scan itself" in capsys.readouterr().err
    assert run("-p", port) == 1
    assert "no scan given" in capsys.readouterr().err
    assert read_scan(scan).n_acquisitions == 6


def test_servers_error_gives_status_1_with_its_words_and_keeps_earlier_runs(port: int, scan: str, tmp_path: Path, capsys):
    out = tmp_path / "out.h5"
    assert run(scan, "-p", port, "-o", out, "-G", "good") == 0
    assert run(scan.replace("scan.h5", "bad.h5"), "-p", port, "-o", out, "-G", "bad") == 1
    assert "header: no encoding. Write one." in capsys.readouterr().err
    assert image_groups(out) == ["good"]
    assert run(scan, "-p", port, "-s", "readouts_per_frame=7", "-o", out, "-G", "none") == 1
    assert "sent no image" in capsys.readouterr().err


def test_failing_loop_ends_the_replay(port: int, scan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(scan.replace("scan.h5", "bad.h5"), "-p", port, "-o", tmp_path / "o.h5", "-l", "3") == 1
    assert capsys.readouterr().err.count("error: ") == 1


def test_queries_print_the_answer(port: int, capsys: pytest.CaptureFixture[str]):
    assert run("-Q", "gadgetron::version", "-p", port) == 0
    assert "gadgetron-inr" in capsys.readouterr().out
    assert run("-q", "-p", port) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "nothing to say" in told.err


def test_dependency_query_prints_the_status(port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chain_file = tmp_path / "noise.xml"
    chain_file.write_text(
        "<gadgetronStreamConfiguration><writer><slot>1019</slot><dll>d</dll><classname>DependencyQueryWriter</classname></writer>"
        "</gadgetronStreamConfiguration>"
    )
    assert run("-q", "-C", chain_file, "-p", port) == 0
    assert "<value>failed</value>" in capsys.readouterr().out


def test_serve_hosts_the_chain_in_this_process(application, scan: str, tmp_path: Path):
    assert run(scan, "--serve", "-o", tmp_path / "o.h5", "-G", "g", "-s", "coils=2") == 0
    assert read_images(tmp_path / "o.h5", "g")[1][0].data.max() == 2


def test_progress_shows_on_a_terminal_only(application, scan: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    assert run(scan, "--serve", "-o", tmp_path / "a.h5") == 0
    assert "━" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("rich.progress.get_console", lambda: Console(force_terminal=True, width=100))
    assert run(scan, "--serve", "-o", tmp_path / "b.h5") == 0
    out = capsys.readouterr().out
    assert "━" in out
    assert "6/6" in out
    assert "images 3" in out


def test_report_names_every_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = client.ReplayResult(images=3, series={1: 2, 7: 1}, readouts=9, seconds=1.0, latency=0.5, error="lost")
    replay._report(result, tmp_path / "o.h5", "g")
    told = capsys.readouterr()
    assert "2 in series 1, 1 in series 7" in told.out
    assert told.err == "error: lost\n"


def test_lags_of_provisional_images_are_printed(capsys):
    result = client.ReplayResult(images=5, series={1: 4, 2: 1}, readouts=10, seconds=1.0, latency=0.5, lags=(0.010, 0.020, 0.030, 0.240))
    replay._report(result, Path("out.h5"), "group")
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[0] == "| median | 95th | 99th | worst |"
    assert table[2] == "| 25 ms | 208 ms | 234 ms | 240 ms |"
