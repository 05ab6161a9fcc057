"""The compose files: what a person at the scanner relies on, service by service."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from gadgets import chain
from gadgets.cli import build_parser

DOCKER = Path(__file__).resolve().parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]


def plain(text: str) -> str:
    """Variables replaced by their defaults."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["user"] not in ("0", "root", "0:0")
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    assert float(plain(service["cpus"])) > 0
    assert re.fullmatch(r"\d+g", plain(service["mem_limit"]))
    assert plain(service["environment"]["OMP_NUM_THREADS"]) == plain(service["cpus"])


def test_only_gadgetron_is_published_and_only_to_this_machine():
    published = {name: [plain(port) for port in service.get("ports", [])] for name, service in SERVICES.items()}
    # The node shares Gadgetron's network, so its metrics are published there.
    assert published == {"gadgetron": ["127.0.0.1:9002:9002", "127.0.0.1:9464:9464"], "node": []}


def test_the_node_is_where_the_chain_looks_for_it():
    """The connect chain names a host and a port; the node shares Gadgetron's network and listens there."""
    node = SERVICES["node"]
    assert node["network_mode"] == "service:gadgetron"
    args = build_parser().parse_args(node["command"])
    assert (args.command, args.node, args.host) == ("serve", True, "127.0.0.1")
    assert (args.metrics_host, args.metrics_port) == ("0.0.0.0", 9464)
    for services in (SERVICES, GPU["services"]):
        assert "metrics" in plain(services["gadgetron"]["build"]["args"]["EXTRAS"]).split(",")
    text = chain.read_text(Path(chain.__file__).parents[1] / "pipelines" / "cardiac_connect.xml")
    assert f'<connect address="localhost" port="{args.port}"/>' in text


@pytest.mark.parametrize("name", SERVICES)
def test_health_checks_ask_the_port_that_is_served(name):
    kind, program, *words = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD"
    assert program.endswith("/gadgetron-inr")
    args = build_parser().parse_args(words)
    assert args.info
    assert args.port == {"gadgetron": 9002, "node": 18000}[name]
    # Its own time-out must end it before Docker's does.
    assert args.timeout / 1000 < int(SERVICES[name]["healthcheck"]["timeout"].removesuffix("s"))


def test_the_gpu_is_an_addition():
    assert "nvidia" not in (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    assert set(GPU["services"]) <= set(SERVICES)
    device = GPU["services"]["node"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert plain(GPU["services"]["gadgetron"]["build"]["args"]["BASE"]).endswith("_cuda:4.7.2")


def test_build_arguments_exist():
    for services in (SERVICES, GPU["services"]):
        build = services["gadgetron"]["build"]
        declared = set(re.findall(r"^ARG (\w+)", (DOCKER / "Dockerfile.gadgetron").read_text(encoding="utf-8"), re.MULTILINE))
        assert set(build["args"]) <= declared
    assert (DOCKER / SERVICES["gadgetron"]["build"]["context"] / SERVICES["gadgetron"]["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("path", sorted(DOCKER.glob("Dockerfile.*")), ids=lambda path: path.name)
def test_copied_files_are_in_the_context(path):
    """What .dockerignore leaves out cannot be copied."""
    kept = {line[1:] for line in (DOCKER.parent / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for words in copied for word in words.split()} <= kept
    assert re.findall(r"^USER (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)[-1] not in ("0", "root", "0:0")
