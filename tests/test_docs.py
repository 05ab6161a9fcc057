"""What the documentation says of settings, files and commands is so."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from gadgets.cli import COMMANDS
from gadgets.commands.chain import online_table
from gadgets.settings import as_text
from recon_core.solvers import registry

PROJECT = Path(__file__).resolve().parent.parent
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])


@pytest.mark.parametrize("name", registry.all_names())
def test_a_method_page_has_every_setting_with_its_default(name):
    page = (PROJECT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", page, flags=re.MULTILINE))
    declared = {field.name: as_text(field.default) for field in dataclasses.fields(registry.settings_class(name))}
    assert told == declared


def test_the_online_page_has_the_models_settings():
    assert online_table() in (PROJECT / "docs" / "online.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_of_the_readme_exist():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"gadgetron-inr (?:-v )?([a-z]+)", readme))
    assert named <= set(COMMANDS)
    assert named >= {"simulate", "serve", "replay", "show", "evaluate", "recon", "doctor", "chain"}


def test_solvers_of_the_readme_are_in_the_registry():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## Solvers") :].split("\n## ")[0]
    named = set(re.findall(r"^\| \[?`(\w+)`", table, flags=re.MULTILINE))
    assert {"gridding", "cg_sense", "inmr"} <= named <= set(registry.all_names())
