"""This machine's pip settings for a build.

``pip_settings.py FILE`` writes them as a pip.conf and prints the files and folders they name.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

KEPT = ("index-url", "extra-index-url", "find-links", "cert", "constraint", "trusted-host", "proxy", "default-timeout")


def settings() -> dict[str, str]:
    """What ``pip config list`` tells, environment variables last."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        scope, _, key = name.rpartition(".")
        if scope in ("global", "install", ":env:") and key in KEPT:
            found[key] = ast.literal_eval(value)
    return found


def paths(values: dict[str, str]) -> list[str]:
    """Files and folders of this machine that the values name."""
    words = [word.removeprefix("file://") for value in values.values() for word in re.split(r"\s+", value)]
    # A local index lies beside the files that its pages point at.
    words += [str(Path(word).parent) for word in words if word.startswith("/") and Path(word).name == "simple"]
    return sorted({word for word in words if word.startswith("/") and Path(word).exists()})


def main() -> None:
    """Write the file, print the paths."""
    values = settings()
    written = configparser.RawConfigParser()
    written["global"] = values
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        written.write(file)
    print(*paths(values), sep="\n")


if __name__ == "__main__":
    main()
