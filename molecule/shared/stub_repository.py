#!/usr/bin/env python3
"""A signed apt repository of empty packages on 127.0.0.1, out of a description in JSON.

It stands in for repositories that a test host cannot reach: Ubuntu's archive, NVIDIA's, Grafana's. Names,
versions and relations of the packages are real, their contents are not, so it proves what a role asks of apt
and nothing about the programs. Runs as root on the test host; needs Python alone, dpkg and systemd.

    stub_repository.py nvidia.json

    name        its folder under /opt/stub_repositories, and its unit: stub-repository-NAME
    port        where it listens, on 127.0.0.1 alone
    path        folder below the URL; default: none
    suite       a name, or "/" for a flat repository such as NVIDIA's; default: stable
    component   default: main; a flat repository has none
    release     more fields of the Release file: Origin, Label, Codename
    key         name of the signing key, made at its first use; another name is another key; default: NAME
    key_file    its file at the URL, in ASCII armour; default: key.asc. `fingerprint` lies beside it.
    packages    list of names x versions, with control (fields), files (path: content; "#!" makes one
                executable) and scripts (postinst, ...). In all of them {name}, {version} and {upstream}
                (535.1 of 535.1-2) are replaced.

A second call with the same description changes nothing; one with another description replaces the contents
and keeps the key. Prints "built" or "unchanged".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

ROOT = Path("/opt/stub_repositories")
SELF = Path(__file__)


def main() -> None:
    description = json.loads(Path(sys.argv[1]).read_text())
    root = ROOT / description["name"]
    mark = root / "digest"
    digest = hashlib.sha256(SELF.read_bytes() + json.dumps(description, sort_keys=True).encode()).hexdigest()
    unchanged = mark.exists() and mark.read_text() == digest
    if not unchanged:
        install_gpg()
        shutil.rmtree(root, ignore_errors=True)
        build(description, root / "www")
        mark.write_text(digest)
    serve(description, root / "www")
    print("unchanged" if unchanged else "built")


def build(description: dict[str, Any], www: Path) -> None:
    base = www / description.get("path", "")
    suite, component = description.get("suite", "stable"), description.get("component", "main")
    flat = suite == "/"
    pool = base if flat else base / "pool"
    pool.mkdir(parents=True)
    index = "".join(
        package(entry, name, version, pool, base)
        for entry in description["packages"]
        for name in entry["names"]
        for version in map(str, entry["versions"])
    )

    releases = base if flat else base / "dists" / suite
    packages = Path("Packages") if flat else Path(component, "binary-amd64", "Packages")
    (releases / packages).parent.mkdir(parents=True, exist_ok=True)
    (releases / packages).write_text(index)
    fields = {"Architectures": "amd64", "Date": formatdate(usegmt=True)} | description.get("release", {})
    if not flat:
        fields = {"Suite": suite, "Codename": suite, "Components": component} | fields
    release = paragraph(fields) + f"SHA256:\n {sha256(index.encode())} {len(index.encode())} {packages}\n"
    (releases / "Release").write_text(release)
    sign(description.get("key", description["name"]), releases, base / description.get("key_file", "key.asc"))


def package(entry: dict[str, Any], name: str, version: str, pool: Path, base: Path) -> str:
    """Build one package and hand back its paragraph in the index."""
    upstream = re.sub(r"^\d+:|-[^-]*$", "", version)

    def filled(text: str) -> str:
        return text.replace("{name}", name).replace("{version}", version).replace("{upstream}", upstream)

    control = {"Package": name, "Version": version, "Architecture": "amd64", "Maintainer": "tests"} | {
        field: filled(value) for field, value in entry.get("control", {}).items()
    }
    control.setdefault("Description", "stand-in without contents")
    tree = pool / "tree"
    write(tree / "DEBIAN/control", paragraph(control))
    for script, content in entry.get("scripts", {}).items():
        write(tree / "DEBIAN" / script, filled(content))
    for path, content in entry.get("files", {}).items():
        write(tree / filled(path).lstrip("/"), filled(content))
    deb = pool / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
    subprocess.run(
        ["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, deb], check=True, stdout=sys.stderr
    )
    shutil.rmtree(tree)
    content_of_deb = deb.read_bytes()
    return (
        paragraph(
            control
            | {
                "Filename": str(deb.relative_to(base)).replace("%", "%25"),
                "Size": str(len(content_of_deb)),
                "SHA256": sha256(content_of_deb),
            }
        )
        + "\n"
    )


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755 if content.startswith("#!") else 0o644)


def paragraph(fields: dict[str, str]) -> str:
    return "".join(f"{field}: {value}\n" for field, value in fields.items())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def install_gpg() -> None:
    if not shutil.which("gpg") or not shutil.which("gpg-agent"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
        subprocess.run([*command, "update"], check=True, stdout=sys.stderr, env=environment)
        install = ["install", "--no-install-recommends", "gpg", "gpg-agent"]
        subprocess.run([*command, *install], check=True, stdout=sys.stderr, env=environment)


def sign(key: str, releases: Path, key_file: Path) -> None:
    home = ROOT / "keys" / key
    command = ["gpg", "--homedir", str(home), "--batch", "--yes", "--quiet"]
    if not home.exists():
        home.mkdir(parents=True, mode=0o700)
        user = f"Stand-in {key} <test@example.invalid>"
        generate = ["--passphrase", "", "--quick-generate-key", user, "rsa3072", "sign", "never"]
        subprocess.run([*command, *generate], check=True)
    subprocess.run([*command, "--armor", "--output", str(key_file), "--export"], check=True)
    inline = ["--clearsign", "--output", str(releases / "InRelease"), str(releases / "Release")]
    subprocess.run([*command, *inline], check=True)
    listed = subprocess.run(
        [*command, "--with-colons", "--list-keys"], check=True, text=True, capture_output=True
    )
    fingerprint = next(line for line in listed.stdout.splitlines() if line.startswith("fpr")).split(":")[9]
    (key_file.parent / "fingerprint").write_text(fingerprint)


def serve(description: dict[str, Any], www: Path) -> None:
    unit = f"stub-repository-{description['name']}"
    if subprocess.run(["systemctl", "--quiet", "is-active", unit]).returncode == 0:
        return
    server = ["python3", "-m", "http.server", str(description["port"]), "--bind", "127.0.0.1"]
    run = ["systemd-run", "--quiet", "--collect", "--unit", unit, "--property", "Restart=always"]
    subprocess.run([*run, *server, "--directory", str(www)], check=True)
    for _ in range(100):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", description["port"])).close()
            return
        time.sleep(0.1)
    sys.exit(f"{unit} does not listen.")


if __name__ == "__main__":
    main()
