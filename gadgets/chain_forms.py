"""The forms in which a Gadgetron runs an application: execute or connect, with C++ stages before the node or without."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from gadgets.chain import Chain, our_node, serialised, set_properties, tree
from gadgets.grammar import ENTRY_MODULE, NODE_TARGET

_LIBRARY = "gadgetron_mricore"


def execute_form(chain: Chain) -> str:
    """The chain with a node that Gadgetron starts for every scan, under the name of the installed entry."""
    return _with_action(chain, ET.Element("execute", name=ENTRY_MODULE, target=NODE_TARGET, type="python"))


def connect_form(chain: Chain, address: str, port: int) -> str:
    """The chain with a node that is up already, at an address."""
    return _with_action(chain, ET.Element("connect", address=address, port=str(port)))


def _with_action(chain: Chain, action: ET.Element) -> str:
    root = tree(chain.text)
    node = our_node(root)
    for child in list(node):
        if child.tag in ("execute", "connect"):
            node.remove(child)
    node.insert(0, action)
    return serialised(root)


def with_stages(text: str, noise_adjust: bool, coils: int | None) -> str:
    """A chain with Gadgetron's own stages at the start of its stream, and our node told of them.

    Args:
        text: a checked chain.
        noise_adjust: whiten (``NoiseAdjustGadget``); a chain that has it already is left alone.
        coils: compress to so many coils (``PCACoilGadget``, ``CoilReductionGadget``); None: do not.
    """
    root = tree(text)
    stream = next(root.iter("stream"))
    present = {element.text for element in root.iter("classname")}
    wanted = list(_stages(noise_adjust, coils))
    added = [gadget for class_name, gadget in wanted if class_name not in present]
    # Behind a NoiseAdjust that is there already: coils are compressed after whitening.
    start = 1 if "NoiseAdjustGadget" in present else 0
    for place, gadget in enumerate(added, start):
        stream.insert(place, gadget)
    told = {"whitened": "true"} if noise_adjust else {}
    if coils is not None:
        told["compressed"] = "true"
    set_properties(root, told)
    return serialised(root)


def _stages(noise_adjust: bool, coils: int | None) -> Iterator[tuple[str, ET.Element]]:
    if noise_adjust:
        yield "NoiseAdjustGadget", _gadget("NoiseAdjustGadget")
    if coils is not None:
        yield "PCACoilGadget", _gadget("PCACoilGadget")
        yield "CoilReductionGadget", _gadget("CoilReductionGadget", coils_out=str(coils))


def _gadget(class_name: str, **properties: str) -> ET.Element:
    gadget = ET.Element("gadget")
    for tag, words in (("name", class_name.removesuffix("Gadget")), ("dll", _LIBRARY), ("classname", class_name)):
        ET.SubElement(gadget, tag).text = words
    for name, value in properties.items():
        ET.SubElement(gadget, "property", name=name, value=value)
    return gadget
