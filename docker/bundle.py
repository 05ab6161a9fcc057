"""An OCI run-time configuration from an image's own: ``buildah inspect IMAGE | bundle.py ROOT HOSTS [COMMAND…]``.

Read-only root, a tmpfs at /tmp, a network of its own with nothing but loopback, no capabilities. HOSTS is
the file that an engine puts at /etc/hosts.
"""

from __future__ import annotations

import json
import sys

READ_ONLY = ["nosuid", "noexec", "nodev", "ro"]


def configuration(image: dict[str, object], root: str, hosts: str, command: list[str]) -> dict[str, object]:
    """What runc is told; without a command the image's entry point and command."""
    user, _, group = str(image["User"]).partition(":")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": int(user), "gid": int(group)},
            "args": command or [*(image.get("Entrypoint") or []), *(image.get("Cmd") or [])],  # type: ignore[misc]
            "env": image["Env"],
            "cwd": "/tmp",  # noqa: S108 - the container's own
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "root": {"path": root, "readonly": True},
        "hostname": "inr",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},  # noqa: S108
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},  # noqa: S108
            {"destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["bind", *READ_ONLY]},
            {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", *READ_ONLY]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }


if __name__ == "__main__":
    json.dump(configuration(json.load(sys.stdin)["Docker"]["config"], sys.argv[1], sys.argv[2], sys.argv[3:]), sys.stdout)
