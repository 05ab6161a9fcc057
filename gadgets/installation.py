"""Our files in a Gadgetron installation: what they hold, which are ours, and how they get there and away.

A file of ours begins with a line that names its writer and the digest of the rest. So one that somebody else wrote, or that was changed
by hand, is recognised and never overwritten or removed without being told to.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path

from gadgets import chain, chain_forms
from gadgets.grammar import ENTRY_MODULE
from recon_core.errors import SettingError

CHAINS = Path("share/gadgetron/config")
MODULES = Path("share/gadgetron/python")
PREFIX = "inr_"
"""Start of the names of our chains among Gadgetron's own."""

_MARK = re.compile(rb"written by gadgetron-inr (\S+), sha256 ([0-9a-f]{64})")
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'


class State(enum.Enum):
    """What stands where a file of ours belongs."""

    ABSENT = "absent"
    CURRENT = "as it would be written"
    OURS = "ours, of another version or with other settings"
    CHANGED = "ours, changed by hand"
    FOREIGN = "not ours"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the chains are to say.

    Attributes:
        address: host of the resident node, in connect chains.
        port: its port.
        noise_adjust: Gadgetron whitens before us.
        coils: Gadgetron compresses to so many coils before us; None: it does not.
    """

    address: str = "localhost"
    port: int = 18000
    noise_adjust: bool = False
    coils: int | None = None


def home(named: str | None) -> Path:
    """The installation's prefix: as named, else ``$GADGETRON_HOME``, else that of the ``gadgetron`` on PATH.

    Raises:
        SettingError: none can be found, or the folder holds no Gadgetron.
    """
    cure = "Give --prefix: the folder that holds share/gadgetron/config (/opt/conda/envs/gadgetron in the official images)."
    program = shutil.which("gadgetron")
    found = named or os.environ.get("GADGETRON_HOME") or (str(Path(program).resolve().parent.parent) if program else None)
    if not found:
        raise SettingError("--prefix", "not given, GADGETRON_HOME is not set and no gadgetron is on PATH", cure)
    prefix = Path(found).expanduser().resolve()
    if not (prefix / CHAINS).is_dir():
        raise SettingError("--prefix", f"{str(prefix)!r} holds no {CHAINS}: not a Gadgetron installation", cure)
    return prefix


def files(options: Options) -> dict[Path, bytes]:
    """Everything to be written: path under the prefix to content."""
    texts: dict[str, str] = {}
    for name in chain.packaged():
        entry = chain.load(name)
        if entry.form == "execute":
            texts[f"{PREFIX}{entry.application}.xml"] = chain_forms.execute_form(entry)
            texts[f"{PREFIX}{entry.application}_connect.xml"] = chain_forms.connect_form(entry, options.address, options.port)
        elif entry.form == "distributed":
            texts[PREFIX + name] = entry.text
    made = {CHAINS / name: _marked_xml(chain_forms.with_stages(text, options.noise_adjust, options.coils)) for name, text in texts.items()}
    entry_text = (resources.files("gadgets") / "node_entry.py").read_text(encoding="utf-8")
    made[MODULES / f"{ENTRY_MODULE}.py"] = f"# {_mark(entry_text.encode())}\n{entry_text}".encode()
    return made


def _mark(rest: bytes) -> str:
    return f"written by gadgetron-inr {metadata.version('gadgetron-inr')}, sha256 {hashlib.sha256(rest).hexdigest()}"


def _marked_xml(text: str) -> bytes:
    rest = text.removeprefix(_DECLARATION).encode()
    # Gadgetron's reader takes a comment between declaration and root element.
    return f"{_DECLARATION}<!-- {_mark(rest)} -->\n".encode() + rest


def state(path: Path, content: bytes | None = None) -> State:
    """What stands at a path.

    Args:
        path: where a file of ours belongs.
        content: what it would hold; None where only its owner matters.
    """
    if path.is_symlink():
        return State.FOREIGN
    if not path.exists():
        return State.ABSENT
    held = path.read_bytes() if path.is_file() else b""
    if held == content:
        return State.CURRENT
    lines = held.split(b"\n", 2)
    # The mark stands on the first line, or behind an XML declaration on the second.
    for number, line in enumerate(lines[:2]):
        if found := _MARK.search(line):
            rest = held.split(b"\n", number + 1)[number + 1]
            return State.OURS if hashlib.sha256(rest).hexdigest().encode() == found[2] else State.CHANGED
    return State.FOREIGN


def states(prefix: Path, made: Mapping[Path, bytes]) -> dict[Path, State]:
    """What stands at every place that installing writes to."""
    return {path: state(prefix / path, content) for path, content in made.items()}


def install(prefix: Path, made: Mapping[Path, bytes], force: bool = False) -> dict[Path, State]:
    """Write the files; all or, where one may not be, none.

    Args:
        prefix: the installation.
        made: path under it to content.
        force: overwrite also what is not ours or was changed by hand.

    Returns:
        What stood at every path before.

    Raises:
        SettingError: a file is not ours or was changed by hand.
    """
    before = states(prefix, made)
    _refuse(prefix, before, force, "overwritten")
    for path, content in made.items():
        if before[path] is State.CURRENT:
            continue
        target = prefix / path
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.new")
        scratch.write_bytes(content)
        # In one step: a Gadgetron that reads the chain meanwhile sees the old one or the new one.
        scratch.replace(target)
    return before


def installed(prefix: Path) -> dict[Path, State]:
    """Our files in an installation, whatever version wrote them, and what became of them."""
    found: dict[Path, State] = {}
    for folder, pattern in ((CHAINS, f"{PREFIX}*.xml"), (MODULES, f"{ENTRY_MODULE}.py")):
        for path in sorted((prefix / folder).glob(pattern)):
            what = state(path)
            if what in (State.OURS, State.CHANGED):
                found[path.relative_to(prefix)] = what
    return found


def uninstall(prefix: Path, force: bool = False) -> dict[Path, State]:
    """Remove our files.

    Args:
        prefix: the installation.
        force: also those changed by hand.

    Returns:
        What was removed.

    Raises:
        SettingError: one was changed by hand.
    """
    found = installed(prefix)
    _refuse(prefix, found, force, "removed")
    for path in found:
        (prefix / path).unlink()
    return found


def _refuse(prefix: Path, found: Mapping[Path, State], force: bool, verb: str) -> None:
    kept = [f"{prefix / path} is {what.value}" for path, what in found.items() if what in (State.FOREIGN, State.CHANGED)]
    if kept and not force:
        raise SettingError("install", f"nothing was {verb}: {'; '.join(kept)}", "Move them away, or give --force.")
