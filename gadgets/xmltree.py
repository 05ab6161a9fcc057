"""XML as a tree that remembers line numbers; documents with a DTD or entities are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from xml.parsers import expat

from recon_core.errors import SettingError

MAX_DEPTH = 40
"""A chain nests ten elements deep at most; more is an attack on the parser's stack."""


@dataclasses.dataclass
class Node:
    """One element.

    Attributes:
        tag: name without namespace.
        attributes: without namespace declarations.
        line: where it starts, from 1.
        children: elements, in order.
        text: character data directly inside, stripped.
    """

    tag: str
    attributes: dict[str, str]
    line: int
    children: list[Node] = dataclasses.field(default_factory=list)
    text: str = ""

    def all(self, tag: str) -> list[Node]:
        """Children of this tag."""
        return [child for child in self.children if child.tag == tag]

    def first(self, tag: str) -> Node | None:
        """First child of this tag."""
        return next((child for child in self.children if child.tag == tag), None)

    def walk(self) -> Iterator[Node]:
        """This element and all below it, in document order."""
        yield self
        for child in self.children:
            yield from child.walk()


def fault(name: str, line: int, problem: str, cure: str) -> SettingError:
    """An error at a line of a named document."""
    return SettingError(f"{name}, line {line}", problem, cure)


def parse_xml(text: str, name: str) -> Node:
    """Parse a document.

    Args:
        text: the document.
        name: what to call it in errors.

    Raises:
        SettingError: not well-formed, with a document type or nested deeper than :data:`MAX_DEPTH`; names the line.
    """
    parser = expat.ParserCreate(namespace_separator=" ")
    roots: list[Node] = []
    stack: list[Node] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) >= MAX_DEPTH:
            raise fault(name, parser.CurrentLineNumber, f"more than {MAX_DEPTH} elements deep", "Flatten the document.")
        local = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
        node = Node(tag.rpartition(" ")[2], local, parser.CurrentLineNumber)
        (stack[-1].children if stack else roots).append(node)
        stack.append(node)

    def end(_: str) -> None:
        node = stack.pop()
        node.text = node.text.strip()

    def characters(data: str) -> None:
        stack[-1].text += data

    def doctype(*_: object) -> None:
        raise fault(name, parser.CurrentLineNumber, "has a document type (DTD)", "Remove the <!DOCTYPE …> declaration.")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = doctype
    parser.buffer_text = True
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise fault(name, error.lineno, f"is not well-formed XML ({reason})", "Mend the XML there, or just above.") from error
    return roots[0]
