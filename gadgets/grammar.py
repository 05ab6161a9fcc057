"""Gadgetron's version-2 chain grammar, checked with line numbers. What of it can be hosted: :mod:`gadgets.chain`."""

from __future__ import annotations

import difflib

from gadgets.xmltree import Node, fault, parse_xml

NODE_MODULE = "gadgets.node"
NODE_TARGET = "run"
ENTRY_MODULE = "gadgetron_inr_node"
"""The node under the name of the file that ``gadgetron-inr install`` puts beside Gadgetron's own Python modules."""
WORKER_LIBRARY = "gadgetron_inr"
"""``<dll>`` of a gadget in a distributed stream that a worker of ours runs; its ``<classname>`` names the chain."""
EXECUTE = f'<execute name="{NODE_MODULE}" target="{NODE_TARGET}" type="python"/>'

CONTAINERS = ("parallel", "distributed", "parallelprocess", "puredistributed")
_CLASS = frozenset({"name", "dll", "classname", "property"})
_PROCESSING = frozenset({"gadget", "external", *CONTAINERS})
# What may stand inside what: Gadgetron's version-2 grammar.
_GRAMMAR: dict[str, frozenset[str]] = {
    "configuration": frozenset({"version", "readers", "writers", "stream"}),
    "readers": frozenset({"reader"}),
    "writers": frozenset({"writer"}),
    "reader": frozenset({"slot", "dll", "classname"}),
    "writer": frozenset({"slot", "dll", "classname"}),
    "stream": _PROCESSING,
    "gadget": _CLASS,
    "branch": _CLASS,
    "merge": _CLASS,
    "distributor": _CLASS,
    "external": frozenset({"execute", "connect", "configuration", "readers", "writers", "name"}),
    "parallel": frozenset({"branch", "stream", "merge"}),
    "distributed": frozenset({"readers", "writers", "distributor", "stream"}),
    "parallelprocess": frozenset({"purestream"}),
    "puredistributed": frozenset({"readers", "writers", "purestream"}),
    "purestream": frozenset({"gadget"}),
}
_NEEDED: dict[str, tuple[str, ...]] = {
    # A <slot> may be left out: Gadgetron then takes the one that the class declares.
    "reader": ("dll", "classname"),
    "writer": ("dll", "classname"),
    "gadget": ("dll", "classname"),
    "branch": ("dll", "classname"),
    "merge": ("dll", "classname"),
    "distributor": ("dll", "classname"),
    "parallel": ("branch", "stream", "merge"),
    "distributed": ("readers", "writers", "distributor", "stream"),
    "parallelprocess": ("purestream",),
    "puredistributed": ("readers", "writers", "purestream"),
}


def check_grammar(text: str, name: str) -> Node:
    """Check version-2 grammar alone, gadgets of any library admitted.

    Raises:
        SettingError: names line and cure.
    """
    root = parse_xml(text, name)
    if root.tag == "gadgetronStreamConfiguration":
        raise fault(name, root.line, "a version-1 chain", "Write it as <configuration><version>2</version>…, see docs/chains.md.")
    if root.tag != "configuration":
        raise fault(name, root.line, f"<{root.tag}> is not a chain", "Start with <configuration><version>2</version>.")
    version = only(root, "version", name, "Write <version>2</version> first.")
    if version.text != "2":
        raise fault(name, version.line, f"version {version.text!r}", "Only version 2 is understood: write <version>2</version>.")
    _check_element(root, name)
    for tag in ("readers", "writers", "stream"):
        only(root, tag, name)
    return root


def only(parent: Node, tag: str, name: str, cure: str = "") -> Node:
    """The one child of that tag."""
    found = parent.all(tag)
    if not found:
        raise fault(name, parent.line, f"<{parent.tag}> has no <{tag}>", cure or f"Add <{tag}>…</{tag}>.")
    if len(found) > 1:
        raise fault(name, found[1].line, f"a second <{tag}> in <{parent.tag}>", "Keep one.")
    return found[0]


def _check_element(node: Node, name: str) -> None:
    """Check the children of an element against the grammar, all the way down."""
    allowed = _GRAMMAR.get(node.tag)
    if allowed is None:
        return
    for child in node.children:
        if child.tag not in allowed:
            near = difflib.get_close_matches(child.tag, allowed, n=1)
            hint = f"Did you mean <{near[0]}>? " if near else ""
            admitted = ", ".join(f"<{tag}>" for tag in sorted(allowed))
            raise fault(name, child.line, f"unknown tag <{child.tag}> in <{node.tag}>", f"{hint}Here may stand: {admitted}.")
    for tag in _NEEDED.get(node.tag, ()):
        needed = node.first(tag)
        if needed is None:
            raise fault(name, node.line, f"<{node.tag}> has no <{tag}>", f"Add <{tag}>…</{tag}>.")
        if tag in ("dll", "classname") and not needed.text:
            raise fault(name, needed.line, f"<{tag}> is empty", "Write its value.")
    for slot in node.all("slot"):
        if not slot.text.isdecimal() or int(slot.text) > 0xFFFF:
            raise fault(name, slot.line, f"slot {slot.text!r} is not a message id", "Give a number from 0 to 65535.")
    if node.tag == "distributed":
        for inner in node.walk():
            if inner.tag == "external":
                # Seen in Gadgetron 4.7: the worker gets the node without target, configuration and address.
                problem = "<external> inside <distributed> loses its target and its properties on the way to the worker"
                raise fault(name, inner.line, problem, "Put the <external> after the <distributed>.")
    if node.tag == "external":
        _check_external(node, name)
    elif "property" in allowed:
        properties_of(node, name, {})
    for child in node.children:
        # A node's <configuration> shares its tag with the root, not its content.
        if node.tag != "external" or child.tag in ("readers", "writers"):
            _check_element(child, name)


def _check_external(node: Node, name: str) -> None:
    actions = node.all("execute") + node.all("connect")
    if len(actions) != 1:
        what = "neither <execute> nor <connect>" if not actions else "more than one <execute> or <connect>"
        raise fault(name, node.line, f"<external> has {what}", f'Write one: {EXECUTE} or <connect address="localhost" port="18000"/>.')
    action = actions[0]
    if action.tag == "connect":
        port_of(action, name)
    else:
        for attribute in ("name", "type"):
            if not action.attributes.get(attribute, "").strip():
                raise fault(name, action.line, f"<execute> has no {attribute}", f"Write {EXECUTE}.")
        if action.attributes["type"].lower() == "python" and not action.attributes.get("target", "").strip():
            raise fault(name, action.line, "<execute> has no target", f"Name the function to call: {EXECUTE}.")
    configurations = node.all("configuration")
    if len(configurations) > 1:
        raise fault(name, configurations[1].line, "a second <configuration> in <external>", "Keep one.")
    for configuration in configurations:
        for child in configuration.children:
            if child.tag != "property":
                raise fault(
                    name, child.line, f"unknown tag <{child.tag}> in a node's <configuration>", 'Write <property name="…" value="…"/>.'
                )
            if child.children:
                # PyPI gadgetron reads child elements as {None: None}: the value would be lost without a word.
                raise fault(
                    name, child.line, "a node's property written with child elements is lost", 'Write <property name="…" value="…"/>.'
                )
        properties_of(configuration, name, {})


def properties_of(parent: Node, name: str, lines: dict[str, int]) -> dict[str, str]:
    """Properties of an element; ``lines`` receives where each stands."""
    values: dict[str, str] = {}
    for node in parent.all("property"):
        pair: list[str | None] = []
        for part in ("name", "value"):
            child = node.first(part)
            pair.append(node.attributes.get(part) if child is None else child.text)
        key, value = pair
        if not key or not key.strip() or value is None:
            missing = "name" if not key or not key.strip() else "value"
            raise fault(name, node.line, f"<property> has no {missing}", 'Write <property name="…" value="…"/>.')
        key = key.strip()
        if key in values:
            raise fault(name, node.line, f"property {key!r} is given twice", f"Keep one; the other stands at line {lines[key]}.")
        values[key] = value.strip()
        lines[key] = node.line
    return values


def port_of(connect: Node, name: str) -> int:
    """Port of a ``<connect>`` element.

    Raises:
        SettingError: absent or not a port number.
    """
    port = connect.attributes.get("port", "").strip()
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        what = f"port {port!r} is not a port" if port else "<connect> has no port"
        raise fault(name, connect.line, what, 'Write <connect address="localhost" port="18000"/> with a port from 1 to 65535.')
    return int(port)
