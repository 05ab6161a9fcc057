"""What a peer asks for: which dialect its configuration speaks, which chain, which settings; and answers to queries."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any, Protocol

import ismrmrd

from gadgets import permissions
from gadgets.chain import node_properties
from gadgets.grammar import WORKER_LIBRARY, properties_of
from gadgets.metrics import NO_METRICS, Metrics
from gadgets.stream import ConfigFile, ConfigScript, DependencyStatus, Query, Response
from gadgets.xmltree import Node, fault, parse_xml
from recon_core.errors import SettingError

WORKER = "worker configuration"
DEPENDENCY_SLOT = "1019"
_NAME = re.compile(r"[\w.\- ]{1,255}")


class HostedChain(Protocol):
    """What is used of a chain (``gadgets.chain.Chain``)."""

    @property
    def name(self) -> str:
        """File name of the chain."""
        ...

    def settings(self, overrides: Mapping[str, str] | None = None) -> Any:
        """Settings of the chain's node."""
        ...


@dataclasses.dataclass(frozen=True)
class Application:
    """What a scan needs of the rest of the package; tests give cheaper ones.

    Attributes:
        load: a known chain by its name.
        parse: a chain from XML and a name to call it.
        node_settings: settings from a node's properties.
        run: settings, header XML, readouts and waveforms, report → images.
        permit: raises for settings of a peer that it may not choose; those of a chain on this machine are not asked about.
    """

    load: Callable[[str], HostedChain]
    parse: Callable[[str, str], HostedChain]
    node_settings: Callable[[Mapping[str, str]], Any]
    run: Callable[[Any, str, Iterable[Any], Callable[[str], None]], Iterator[ismrmrd.Image]]
    permit: Callable[[Any], None] = lambda settings: None


def default_application(metrics: Metrics = NO_METRICS, executors: Iterable[str] = ()) -> Application:
    """The package's own chains, settings and stages.

    Args:
        metrics: counts what happens while a scan runs.
        executors: Dask schedulers that a peer may name, besides those of the environment.

    Raises:
        SettingError: an address of a scheduler that is none.
    """
    # Imported here: the stages bring torch, which a node or server that refuses a scan does not need.
    from gadgets import chain, settings, stages

    return Application(
        chain.load_known,
        chain.parse,
        settings.chain_settings,
        functools.partial(stages.run, metrics=metrics),
        functools.partial(permissions.check, allowed=permissions.listed(executors)),
    )


class Form(enum.Enum):
    """What a configuration is."""

    NAME = "chain name"
    SCRIPT = "chain script"
    NODE = "node configuration"
    WORKER = "distributed worker"


@dataclasses.dataclass(frozen=True)
class Request:
    """A recognised configuration.

    Attributes:
        form: which kind it is; NODE and WORKER mean that Gadgetron is the peer.
        text: the name or the XML.
    """

    form: Form
    text: str

    @property
    def from_gadgetron(self) -> bool:
        """The peer is a Gadgetron server, not a client: errors go as ERROR (8), and TEXT is illegal."""
        return self.form in (Form.NODE, Form.WORKER)

    @property
    def dependency(self) -> bool:
        """Asks for the state of a noise measurement: a writer for message 1019 is set up."""
        if self.form is not Form.SCRIPT:
            return False
        try:
            root = parse_xml(self.text, "chain")
        except SettingError:
            # No scan follows (or it will be refused with that error then): nothing to answer here.
            return False
        return any(node.tag == "slot" and node.text == DEPENDENCY_SLOT for node in root.walk())


def recognise(config: ConfigFile | ConfigScript) -> Request:
    """Tell the dialect from the configuration; refuses nothing, for no error may be told before HEADER."""
    if isinstance(config, ConfigFile):
        return Request(Form.NAME, config.name)
    bare = re.sub(r"<\?xml.*?\?>", "", config.text, count=1, flags=re.DOTALL).strip()
    if not bare:
        # A node without <configuration> gets the XML declaration alone.
        return Request(Form.NODE, config.text)
    if _NAME.fullmatch(bare):
        return Request(Form.NAME, bare)
    try:
        root = parse_xml(config.text, "chain")
    except SettingError:
        return Request(Form.SCRIPT, config.text)
    stream = root.first("stream")
    if root.tag != "configuration":
        return Request(Form.SCRIPT, config.text)
    if stream is None and root.first("version") is None:
        return Request(Form.NODE, config.text)
    if stream is not None and "key" in stream.attributes:
        # Only Gadgetron's own writer of chains puts a key there: it hands on the inner stream of a distributed part.
        return Request(Form.WORKER, config.text)
    return Request(Form.SCRIPT, config.text)


def resolve(request: Request, application: Application, name: str | None, overrides: Mapping[str, str]) -> tuple[str, Any]:
    """The chain's name and settings that a request asks for.

    Args:
        request: the recognised configuration.
        application: chains and settings.
        name: chain that an MRD console put instead.
        overrides: properties that an MRD console set.

    Raises:
        SettingError: unknown chain or property, value out of range, a gadget that cannot be hosted, a value that no peer may choose.
    """
    if name is not None or request.form is Form.NAME:
        # Its file lies here, and a console sets none of what a peer may not choose.
        chain = application.load(name or request.text)
        return chain.name, chain.settings(overrides)
    if request.form is Form.NODE:
        title, settings = "node", application.node_settings({**node_properties(request.text), **overrides})
    elif request.form is Form.WORKER:
        chain, properties = _worker_chain(request.text, application)
        title, settings = chain.name, chain.settings({**properties, **overrides})
    else:
        chain = application.parse(request.text, "sent chain")
        title, settings = chain.name, chain.settings(overrides)
    application.permit(settings)
    return title, settings


def _worker_chain(text: str, application: Application) -> tuple[HostedChain, dict[str, str]]:
    """The chain that the one gadget of a distributed worker's stream names, and the gadget's properties."""
    root = parse_xml(text, WORKER)
    stream = root.first("stream")
    if stream is None:
        raise fault(WORKER, root.line, "no <stream>", "Send the inner stream of a distributed part.")
    cure = f"Write one <gadget> with dll {WORKER_LIBRARY} and a chain's name as classname in the distributed stream."
    chosen: tuple[HostedChain, dict[str, str]] | None = None
    for child in stream.children:
        if child.tag != "gadget":
            raise fault(WORKER, child.line, f"<{child.tag}> cannot be hosted in a distributed stream", cure)
        class_name = _child_text(child, "classname")
        library = _child_text(child, "dll")
        if library != WORKER_LIBRARY:
            raise fault(WORKER, child.line, f"gadget {class_name!r} of library {library!r} cannot be hosted", cure)
        if chosen is not None:
            raise fault(WORKER, child.line, f"a second gadget {class_name!r}", cure)
        try:
            chosen = application.load(class_name), properties_of(child, WORKER, {})
        except SettingError as error:
            raise SettingError(f"{WORKER}, line {child.line}: gadget {class_name!r}", error.problem, error.cure) from error
    if chosen is None:
        raise fault(WORKER, stream.line, "no gadget", cure)
    return chosen


def _child_text(node: Node, tag: str) -> str:
    child = node.first(tag)
    return "" if child is None else child.text


def dependency_status() -> DependencyStatus:
    """Answer to a noise dependency: not stored here, so the client sends the noise with the scan or does without."""
    return DependencyStatus(
        '<?xml version="1.0"?>\n<ismrmrdMeta>\n\t<meta>\n\t\t<name>status</name>\n\t\t<value>failed</value>\n\t</meta>\n</ismrmrdMeta>\n'
    )


def respond(query: Query) -> Response:
    """The answer to a query, under Gadgetron's names; an unknown one is told what can be asked."""
    version = f"gadgetron-inr {metadata.version('gadgetron-inr')}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    answers = {
        "gadgetron::version": version,
        "gadgetron::info": f"{version}, embedded server",
        "gadgetron::info::memory": str(memory),
        "gadgetron::info::python": "1",
        "gadgetron::info::matlab": "0",
        "ismrmrd::version": metadata.version("ismrmrd"),
    }
    name = query.text.strip()
    return Response(answers.get(name, f"unknown query {name!r}; known: {', '.join(answers)}"), query.correlation)
