#!/usr/bin/python
"""Ansible module: which packages, at which versions, make up a driver, by what apt knows. Changes nothing.

Drivers come as dozens of packages that depend on each other at one exact version, so apt can only move all of
them in one step, each named with its version. Their names differ from archive to archive; that they all carry
the driver's version does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: driver_packages
short_description: Which packages, at which versions, make up a driver
description:
  - Reads apt's lists and what is installed. Changes nothing, in check mode or not.
options:
  version:
    type: str
    required: true
    description: Version of the driver, as NVIDIA numbers it.
  package_version:
    type: str
    required: true
    description: Version of its packages in the archive to take them from.
  branch:
    type: int
    required: true
    description: Branch that the driver must be of in the end.
  wanted:
    type: list
    elements: str
    required: true
    description: Packages to install at the driver's version.
  equal:
    type: list
    elements: str
    default: []
    description: Packages to install at the driver's version, of whatever revision.
  companions:
    type: list
    elements: str
    default: []
    description: Packages to install at the driver's version where there is one, else at any.
  dkms:
    type: list
    elements: str
    required: true
    description: Packages that build the kernel modules on the host, at the driver's version.
  precompiled:
    type: list
    elements: str
    default: []
    description: Packages with built and signed modules, taken instead where there is one for each kernel.
  headers:
    type: list
    elements: str
    default: []
    description: Packages that modules are built with.
  cache:
    type: str
    required: true
    description: Folder that packages are kept in.
author: [maya1-fleet]
"""
EXAMPLES = """
- name: Ask apt what makes up the driver
  driver_packages:
    version: 535.309.01
    package_version: 535.309.01-0+deb12u1
    branch: 535
    wanted: [nvidia-kernel-dkms, libcuda1]
    cache: /var/cache/maya1/driver/535.309.01
  register: __nvidia_driver_packages
"""
RETURN = """
packages:
  description: The packages to install, each with its version.
  returned: always
  type: dict
family:
  description: Every name that has the driver's version, with that version.
  returned: always
  type: dict
missing:
  description: Wanted packages without the driver's version, each with the versions that there are.
  returned: always
  type: dict
transitional:
  description: Wanted packages that bring another branch, each with what they lead to.
  returned: always
  type: dict
strays:
  description: Installed packages of another version of the driver that are not replaced by these.
  returned: always
  type: list
installed:
  description: Whether all packages are installed, and no stray is.
  returned: always
  type: bool
kept:
  description: Whether the folder holds all packages of the driver's version.
  returned: always
  type: bool
modules:
  description: Where kernel modules come from, C(dkms) or C(precompiled).
  returned: always
  type: str
plain:
  description: Packages to install at whatever version there is.
  returned: always
  type: list
unavailable:
  description: Headers that no archive has.
  returned: always
  type: list
"""

# NVIDIA's driver versions: 535.309.01, 580.65. Its other packages have no three digits in front.
DRIVER = re.compile(r"\d{3}\.\d{2,3}(\.\d{2})?")
# What is part of a driver by its name; others happen to have such a version too.
PART = re.compile(r"nvidia|^cuda-drivers|^libcuda|^libnvcuvid|^libnvoptix|^libxnvctrl")
# dpkg's state: installed and configured.
INSTALLED = 6
BRANCH = re.compile(r"(?<=-)\d{3}(?=-|$)")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "package_version": {"type": "str", "required": True},
            "branch": {"type": "int", "required": True},
            "wanted": {"type": "list", "elements": "str", "required": True},
            "equal": {"type": "list", "elements": "str", "default": []},
            "companions": {"type": "list", "elements": "str", "default": []},
            "dkms": {"type": "list", "elements": "str", "required": True},
            "precompiled": {"type": "list", "elements": "str", "default": []},
            "headers": {"type": "list", "elements": "str", "default": []},
            "cache": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        import apt_pkg
    except ImportError:
        module.fail_json(msg="The package python3-apt is not installed on this host. Install it.")
    apt_pkg.init()
    module.exit_json(changed=False, **judge(Archive(apt_pkg.Cache(None)), **module.params))


class Archive:
    """apt's lists and state, asked by names of this machine's architecture."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.names = {package.name: package for package in cache.packages if package.has_versions}

    def version(self, name: str, upstream_version: str, exactly: str) -> Any:
        """A package's version of this driver: the archive's own where there is one."""
        versions = [v for v in self._versions(name) if upstream(v.ver_str) == upstream_version]
        return next((v for v in versions if v.ver_str == exactly), versions[0] if versions else None)

    def versions(self, name: str) -> list[str]:
        return [version.ver_str for version in self._versions(name)]

    def installed(self, name: str) -> str | None:
        package = self.names.get(name)
        if not package or package.current_state != INSTALLED:
            return None
        return str(package.current_ver.ver_str)

    def newest(self, name: str) -> Any:
        return next(iter(self._versions(name)), None)

    def _versions(self, name: str) -> list[Any]:
        return self.names[name].version_list if name in self.names else []


def judge(
    archive: Archive,
    version: str,
    package_version: str,
    branch: int,
    wanted: list[str],
    equal: list[str],
    companions: list[str],
    dkms: list[str],
    precompiled: list[str],
    headers: list[str],
    cache: str,
) -> dict[str, Any]:
    family = {
        name: found for name in archive.names if (found := archive.version(name, version, package_version))
    }
    built = bool(precompiled) and all(map(archive.versions, precompiled))
    wanted = wanted if built else [*wanted, *dkms]
    plain = [
        *(name for name in companions if name not in family),
        *(precompiled if built else headers),
    ]
    missing = {
        name: archive.versions(name)
        for name in (*wanted, *equal)
        if name not in family or (name in wanted and family[name].ver_str != package_version)
    }
    roots = [name for name in (*wanted, *equal, *companions) if name in family]
    # Signed modules have a kernel's version, and need packages of the driver's.
    of_plain = [
        needed for name in plain if (found := archive.newest(name)) for needed in needs(found, family)
    ]
    whole = closure([*roots, *of_plain], family)
    packages = {name: family[name].ver_str for name in sorted(whole)}
    strays = [
        name
        for name in sorted(archive.names)
        if (found := archive.installed(name))
        and PART.search(name)
        and DRIVER.fullmatch(upstream(found))
        and upstream(found) != version
        and name not in packages
        and name not in plain
    ]
    held = {Path(file).name for file in Path(cache).glob("*.deb")}
    return {
        "packages": packages,
        "family": {name: found.ver_str for name, found in sorted(family.items())},
        "missing": missing,
        "transitional": dict(transitional(roots, family, branch)),
        "strays": strays,
        "installed": not strays
        and all(archive.installed(name) == exact for name, exact in packages.items())
        and all(map(archive.installed, plain)),
        "kept": all(
            f"{name}_{exact.replace(':', '%3a')}_{family[name].arch}.deb" in held
            for name, exact in packages.items()
        ),
        "modules": "precompiled" if built else "dkms",
        "plain": plain,
        "unavailable": [] if built else [name for name in headers if not archive.versions(name)],
    }


def closure(roots: list[str], family: dict[str, Any]) -> set[str]:
    """These packages and those that they depend on, as far as they are of the driver's version."""
    whole: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in whole:
            whole.add(name)
            waiting += needs(family[name], family, whole.union(waiting))
    return whole


def needs(version: Any, family: dict[str, Any], chosen: set[str] | None = None) -> list[str]:
    """What a version depends on in the family: of alternatives the first, unless one is chosen already."""
    needed = []
    for group in dependencies(version):
        real = [alternative.target_pkg.name for alternative in group]
        provided = [
            provider.parent_pkg.name
            for alternative in group
            for _, _, provider in alternative.target_pkg.provides_list
            if provider.parent_pkg.name in family
            and provider.ver_str == family[provider.parent_pkg.name].ver_str
        ]
        able = [name for name in real if name in family] or provided
        if not (chosen or set()).intersection([*real, *provided]):
            needed += able[:1]
    return needed


def transitional(roots: list[str], family: dict[str, Any], branch: int) -> Iterator[tuple[str, list[str]]]:
    """Packages of the driver's version that bring another branch, with what they lead to."""
    for name in sorted(closure(roots, family)):
        leads_to = [
            targets[0]
            for group in dependencies(family[name])
            if (targets := [alternative.target_pkg.name for alternative in group])
            and all("nvidia" in target and of_another_branch(target, branch) for target in targets)
        ]
        if leads_to:
            yield name, sorted(leads_to)


def of_another_branch(name: str, branch: int) -> bool:
    found = BRANCH.search(name)
    return found is not None and int(found[0]) != branch


def dependencies(version: Any) -> list[Any]:
    """Groups of alternatives that a version needs."""
    needs = version.depends_list
    return [*needs.get("PreDepends", []), *needs.get("Depends", [])]


def upstream(version: str) -> str:
    """535.309.01 of 1:535.309.01-0ubuntu1."""
    return version.rpartition(":")[2].partition("-")[0]


if __name__ == "__main__":
    main()
