"""Gadgetron chain files: read, checked, and which of them this package can host.

The grammar is Gadgetron's version 2. What runs here is one external Python node, ``gadgets.node``; every other gadget is
refused by name, for a chain in which a gadget silently does nothing gives wrong images. A chain that distributes (its
``<distributed>`` part holds one gadget of our library) is for a real Gadgetron only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree as ET

from gadgets.grammar import (
    CONTAINERS,
    ENTRY_MODULE,
    EXECUTE,
    NODE_MODULE,
    NODE_TARGET,
    WORKER_LIBRARY,
    check_grammar,
    only,
    port_of,
    properties_of,
)
from gadgets.settings import ChainSettings, chain_settings
from gadgets.xmltree import Node, fault, parse_xml
from recon_core.errors import SettingError
from recon_core.options import unknown_name

ACQUISITION_SLOT = 1008
ACQUISITION_READER = "AcquisitionReader"
NODE_CONFIGURATION = "node configuration"
DISTRIBUTED = "_distributed.xml"
"""End of the file name of a chain that only a Gadgetron with workers can run."""
_MODULES = (NODE_MODULE, ENTRY_MODULE)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A chain whose grammar was checked.

    Attributes:
        name: file name, or what the caller called it.
        form: ``execute`` (Gadgetron starts the node for every scan), ``connect`` (joins one that is up) or ``distributed`` (hands
            parts of the scan to workers).
        application: the name without ``.xml``, ``_connect`` and ``_distributed``.
        properties: the node's properties as written.
        text: the XML.
        lines: line of every property.
        address: host of a connect node.
        port: port of a connect node.
    """

    name: str
    form: str
    application: str
    properties: dict[str, str]
    text: str
    lines: dict[str, int] = dataclasses.field(default_factory=dict)
    address: str | None = None
    port: int | None = None

    def settings(self, overrides: Mapping[str, str] | None = None) -> ChainSettings:
        """The node's settings.

        Raises:
            SettingError: a property is unknown, of the wrong type or out of range; names the chain and the line.
        """
        try:
            return chain_settings(self.properties, overrides)
        except SettingError as error:
            line = self.lines.get(error.field)
            if line is None or error.field in (overrides or {}):
                raise
            raise SettingError(f"{self.name}, line {line}: property {error.field}", error.problem, error.cure) from error


def packaged() -> list[str]:
    """File names of the chains that come with the package."""
    return sorted(entry.name for entry in resources.files("pipelines").iterdir() if entry.name.endswith(".xml"))


def known() -> list[str]:
    """File names of the package's chains that can be hosted here."""
    return [name for name in packaged() if not name.endswith(DISTRIBUTED)]


def load_known(name: str) -> Chain:
    """A chain of the package by name (``cardiac`` or ``cardiac.xml``), never another file.

    Raises:
        SettingError: no such chain; tells the known ones.
    """
    file_name = name if name.endswith(".xml") else f"{name}.xml"
    if file_name not in known():
        raise unknown_name("chain", name, known())
    return _packaged(file_name)


def _packaged(file_name: str) -> Chain:
    text = (resources.files("pipelines") / file_name).read_text(encoding="utf-8")
    return parse(text, file_name, host=not file_name.endswith(DISTRIBUTED))


def load(name_or_path: str | Path) -> Chain:
    """A chain of the package by name, or any chain file by path.

    What comes over a socket goes to :func:`load_known`: a peer must not choose files of this machine.

    Raises:
        SettingError: neither a known name nor a file, or not a chain that can be hosted.
    """
    name = str(name_or_path)
    for file_name in (name, f"{name}.xml"):
        if file_name in packaged():
            return _packaged(file_name)
    path = Path(name_or_path)
    if not path.is_file():
        raise unknown_name("chain", name, packaged(), "Or give the path of a chain file.")
    return parse(read_text(path), path.name)


def read_text(path: Path) -> str:
    """Text of a chain file.

    Raises:
        SettingError: cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("chain", f"cannot read {str(path)!r} ({error})", "Give a chain file in UTF-8.") from error


def parse(text: str, name: str = "chain", *, host: bool = True) -> Chain:
    """Check a chain and find its node.

    Args:
        text: version-2 chain XML.
        name: what to call it in errors.
        host: it shall run here; False admits gadgets of other libraries, for a chain that goes to a Gadgetron.

    Raises:
        SettingError: not a version-2 chain, without our node, or with a gadget that cannot be hosted; names line and cure.
    """
    root = check_grammar(text, name)
    stream = only(root, "stream", name)
    if host:
        _refuse_foreign(stream, name)
    nodes = [node for node in stream.walk() if (node.tag == "external" and _foreign_node(node) is None) or _is_worker(node)]
    if not nodes:
        raise fault(name, stream.line, "no reconstruction node in the stream", f"Write <external>{EXECUTE}…</external>.")
    if len(nodes) > 1:
        raise fault(
            name,
            nodes[1].line,
            f"a second {'external node' if nodes[1].tag == 'external' else 'gadget of ours'}",
            "Keep one: images of the first have no reader in the second.",
        )
    _check_readers_writers(root, name)
    node = nodes[0]
    lines: dict[str, int] = {}
    application = name.removesuffix(".xml").removesuffix("_connect").removesuffix("_distributed")
    if _is_worker(node):
        return _distributed(node, stream, name, application, text)
    configuration = node.first("configuration")
    properties = {} if configuration is None else properties_of(configuration, name, lines)
    connect = node.first("connect")
    if connect is None:
        return Chain(name, "execute", application, properties, text, lines)
    return Chain(
        name, "connect", application, properties, text, lines, connect.attributes.get("address", "localhost"), port_of(connect, name)
    )


def _is_worker(node: Node) -> bool:
    """A gadget that a worker of ours runs."""
    library = node.first("dll")
    return node.tag == "gadget" and library is not None and library.text == WORKER_LIBRARY


def _distributed(gadget: Node, stream: Node, name: str, application: str, text: str) -> Chain:
    """A chain whose distributed part holds our gadget.

    Raises:
        SettingError: the gadget stands elsewhere or not alone, names no chain of ours, or its images have no reader.
    """
    cure = f"Write it alone in <distributed>…<stream>: dll {WORKER_LIBRARY}, a known chain's name as classname."
    parts = [part for part in stream.all("distributed") if any(child is gadget for child in only(part, "stream", name).children)]
    if not parts:
        raise fault(name, gadget.line, f"a gadget of {WORKER_LIBRARY} outside a distributed stream", cure)
    others = [child for child in only(parts[0], "stream", name).children if child is not gadget]
    if others:
        raise fault(name, others[0].line, f"<{others[0].tag}> beside it in the distributed stream", cure)
    class_name = only(gadget, "classname", name)
    if f"{class_name.text.removesuffix('.xml')}.xml" not in known():
        raise fault(name, class_name.line, f"unknown chain {class_name.text!r}", f"Known: {', '.join(known())}.")
    needed = {"readers": "ImageReader", "writers": "AcquisitionWriter"}
    for tag, wanted in needed.items():
        found = only(parts[0], tag, name)
        if wanted not in {c.text for entry in found.children for c in entry.all("classname")}:
            one = tag.removesuffix("s")
            wording = f"<{one}><dll>gadgetron_core_{tag}</dll><classname>{wanted}</classname></{one}>"
            raise fault(name, found.line, f"no {wanted} for the workers", f"Add {wording}.")
    lines: dict[str, int] = {}
    return Chain(name, "distributed", application, properties_of(gadget, name, lines), text, lines)


def node_properties(text: str) -> dict[str, str]:
    """Properties in what Gadgetron hands to a node: ``<configuration>`` with ``<property>`` children, or nothing.

    Args:
        text: CONFIG as received; an XML declaration alone (the chain's node has no configuration) gives no property.

    Raises:
        SettingError: anything else; names the line.
    """
    if not re.sub(r"<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL).strip("\ufeff\0 \t\r\n"):
        return {}
    root = parse_xml(text.strip("\0"), NODE_CONFIGURATION)
    if root.tag != "configuration" or any(child.tag != "property" for child in root.children):
        child = next((c for c in root.children if c.tag != "property"), root)
        raise fault(
            NODE_CONFIGURATION,
            child.line,
            f"<{child.tag}> where properties are expected",
            'Send <configuration><property name="…" value="…"/></configuration>.',
        )
    return properties_of(root, NODE_CONFIGURATION, {})


def with_overrides(chain: Chain, overrides: Mapping[str, str]) -> str:
    """The chain's XML with properties of its node replaced or added; everything else inside the root, comments too, stays."""
    root = tree(chain.text)
    set_properties(root, overrides)
    return serialised(root)


def tree(text: str) -> ET.Element:
    """A checked chain's XML to be changed: comments kept, names without namespace."""
    builder = ET.TreeBuilder(insert_comments=True)
    root = ET.fromstring(text, parser=ET.XMLParser(target=builder))
    for element in root.iter():
        if isinstance(element.tag, str):
            # Gadgetron's reader knows no namespaces; a prefix would hide the element from it.
            element.tag = element.tag.rpartition("}")[2]
    return root


def our_node(root: ET.Element) -> ET.Element:
    """The ``<external>`` that is ours, or the gadget that a worker of ours runs."""
    external = next((element for element in root.iter("external") if _is_ours(element)), None)
    if external is not None:
        return external
    return next(element for element in root.iter("gadget") if element.findtext("dll", "").strip() == WORKER_LIBRARY)


def set_properties(root: ET.Element, values: Mapping[str, str]) -> None:
    """Replace or add properties of our node."""
    node = our_node(root)
    holder = node if node.tag == "gadget" else node.find("configuration")
    if holder is None:
        holder = ET.SubElement(node, "configuration")
    present = {_raw_name(element): element for element in holder.findall("property")}
    for name, value in values.items():
        element = present[name] if name in present else ET.SubElement(holder, "property")
        element.clear()
        element.attrib.update(name=name, value=value)


def serialised(root: ET.Element) -> str:
    """A chain's XML as text."""
    ET.indent(root, "    ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _is_ours(external: ET.Element) -> bool:
    execute = external.find("execute")
    return execute is None or (execute.get("name") in _MODULES and execute.get("target") == NODE_TARGET)


def _raw_name(element: ET.Element) -> str:
    return (element.get("name") or element.findtext("name") or "").strip()


def _check_readers_writers(root: Node, name: str) -> None:
    readers = only(root, "readers", name)
    if not any(_reads_acquisitions(reader) for reader in readers.all("reader")):
        raise fault(
            name,
            readers.line,
            f"no reader for readouts (slot {ACQUISITION_SLOT})",
            "Add <reader><slot>1008</slot><dll>gadgetron_core_readers</dll><classname>AcquisitionReader</classname></reader>.",
        )
    writers = only(root, "writers", name)
    if "ImageWriter" not in {c.text for writer in writers.all("writer") for c in writer.all("classname")}:
        raise fault(
            name,
            writers.line,
            "no writer for images",
            "Add <writer><dll>gadgetron_core_writers</dll><classname>ImageWriter</classname></writer>.",
        )


def _reads_acquisitions(reader: Node) -> bool:
    """Whether readouts go to this reader: by its slot, or without one by its class."""
    slots = reader.all("slot")
    if slots:
        return any(int(slot.text) == ACQUISITION_SLOT for slot in slots)
    name = reader.first("classname")
    return name is not None and name.text == ACQUISITION_READER


def _foreign(stream: Node) -> Iterator[tuple[Node, str]]:
    """Elements of the stream that do not run here, with what to call them."""
    for node in stream.children:
        if node.tag == "gadget":
            yield node, _gadget_title(node)
        elif node.tag in CONTAINERS:
            inner = [_gadget_title(n) for n in node.walk() if n.tag == "gadget"]
            yield node, f"<{node.tag}>" + (f" with {', '.join(inner)}" if inner else "")
        elif (title := _foreign_node(node)) is not None:
            yield node, title


def _foreign_node(external: Node) -> str | None:
    """What to call an external node that is not ours; what listens behind a ``<connect>`` is taken for ours."""
    execute = external.first("execute")
    if execute is None:
        return None
    kind, module = execute.attributes["type"].lower(), execute.attributes["name"]
    target = execute.attributes.get("target", "")
    if kind == "python" and module in _MODULES and target == NODE_TARGET:
        return None
    return f"{kind} node {module}{'.' + target if target else ''}"


def _gadget_title(node: Node) -> str:
    class_name, dll, given = (child.text if child else "" for child in map(node.first, ("classname", "dll", "name")))
    return f"gadget {class_name}{f' named {given}' if given and given != class_name else ''} of {dll}"


def _refuse_foreign(stream: Node, name: str) -> None:
    for node, title in _foreign(stream):
        raise fault(
            name,
            node.line,
            f"{title} cannot run here",
            f"Run the chain in Gadgetron, or leave out everything but <external>{EXECUTE}…</external>"
            " (noise whitening, coil compression and maps are its own).",
        )
