"""Operator's command of maya1-fleet: provision GPU hosts with Ansible, verify them, and let them speak."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mayafleet")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
