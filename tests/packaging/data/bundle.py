"""config.json of a container from what its image says, as strict as the head of Containerfile.

`bundle.py ROOT ENGINE KEYS`, where config.json of `crun spec` and buildah's image.json lie;
the words of HEALTHCHECK go to `health`, one a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

root, engine, keys = sys.argv[1:]
image = json.loads(Path("image.json").read_text())["Docker"]["config"]
config = json.loads(Path("config.json").read_text())
uid, _, gid = image["User"].partition(":")
config["root"] = {"path": root, "readonly": True}
config["process"] |= {
    "terminal": False,
    "args": image["Entrypoint"],
    "env": image["Env"],
    "cwd": image["WorkingDir"],
    "user": {"uid": int(uid), "gid": int(gid)},
    "noNewPrivileges": True,
    "capabilities": {},
}
mounts = [m for m in config["mounts"] if m["destination"] != "/sys/fs/cgroup"]
bind = {"type": "bind", "options": ["rbind", "ro"]}
mounts += [
    {"destination": "/engine", "source": engine, **bind},
    {"destination": "/run/keys", "source": keys, **bind},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
]
config["mounts"] = mounts
Path("config.json").write_text(json.dumps(config))
kind, *words = image["Healthcheck"]["Test"]
assert kind == "CMD", kind
Path("health").write_text("\n".join(words) + "\n")
