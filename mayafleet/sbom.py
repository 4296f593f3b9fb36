"""The bill of materials of a release with one bundle: CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from mayafleet import __version__, locks, project
from mayafleet.bundles import Bundle
from mayafleet.errors import ExitCode, FleetError


def of(bundle: Bundle) -> str:
    """The bill as JSON: Python packages of command and service, images, and what a host has of NVIDIA.

    Each component has the property `maya1-fleet:part`: command, service or host. The system's own packages
    are the distribution's to list. Raises FleetError where the bundle's lock file is not there.
    """
    bom = Bom()
    name = f"maya1-fleet, bundle {bundle['name']}"
    bom.metadata.component = Component(name=name, version=__version__, type=ComponentType.PLATFORM)
    for component in (*_packages(bundle), *_images(bundle), *_nvidia(bundle)):
        bom.components.add(component)
        bom.register_dependency(bom.metadata.component, [component])
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _packages(bundle: Bundle) -> Iterator[Component]:
    service = locks.service(bundle["inference"]["requirements"])
    for part, lock in (("command", locks.operator()), ("service", service)):
        for name, pinned in sorted(locks.pinned(lock).items()):
            url = PackageURL("pypi", name=name, version=pinned)
            yield _component(part, ComponentType.LIBRARY, name, pinned, url)


def _images(bundle: Bundle) -> Iterator[Component]:
    dockerfile = (project.root() / "inference" / "Dockerfile").read_text()
    base = re.search(r"^ARG BASE_IMAGE=(\S+)", dockerfile, re.MULTILINE)
    if base is None:
        raise FleetError(
            "inference/Dockerfile names no BASE_IMAGE.",
            "Restore it from version control.",
            ExitCode.INTERNAL,
        )
    for part, image in (("service", base[1]), ("host", bundle["dcgm"]["image"])):
        repository, digest = image.split("@")
        repository = re.sub(r":[^/:]+$", "", repository)
        name = repository.rsplit("/", 1)[-1]
        url = PackageURL("oci", name=name, version=digest, qualifiers={"repository_url": repository})
        yield _component(part, ComponentType.CONTAINER, name, digest, url)


def _nvidia(bundle: Bundle) -> Iterator[Component]:
    """What the roles install on a host, or load there: NVIDIA's, of the bundle's versions."""
    parts = {
        "nvidia-driver": (ComponentType.DEVICE_DRIVER, bundle["driver"]["version"]),
        "cuda": (ComponentType.PLATFORM, bundle["cuda"]["version"]),
        "cudnn": (ComponentType.LIBRARY, bundle["cudnn"]["version"]),
        "tensorrt": (ComponentType.LIBRARY, bundle["inference"]["tensorrt"]),
        "nvidia-container-toolkit": (ComponentType.APPLICATION, bundle["container_toolkit"]["version"]),
        "dcgm": (ComponentType.APPLICATION, bundle["dcgm"]["version"]),
    }
    for name, (kind, wanted) in parts.items():
        yield _component("host", kind, name, wanted, PackageURL("generic", "nvidia", name, wanted))


def _component(part: str, kind: ComponentType, name: str, pinned: str, url: PackageURL) -> Component:
    # A package that command and service both have stands in it twice, so the reference says which.
    return Component(
        name=name,
        version=pinned,
        type=kind,
        purl=url,
        bom_ref=f"{part}:{url}",
        properties=[Property(name="maya1-fleet:part", value=part)],
    )
