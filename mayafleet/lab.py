"""Throw-away hosts on this machine: systemd containers reached over SSH, provisioned like any rented server.

A lab has a name, an inventory folder and a state folder. Everything it makes carries the Docker label
``mayafleet.lab=<name>`` or lies in the state folder, so taking it down removes exactly that.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from mayafleet import project, runner, speech, tokens
from mayafleet.errors import ExitCode, FleetError

LABEL = "mayafleet.lab"
# Lies in a state folder that this module made, so that taking a lab down never removes another folder.
MARK = ".mayafleet-lab"
SENTENCE = "The quick brown fox jumps over the lazy dog tonight."

# What a freshly rented Debian server has: an init, SSH, sudo, Python with its apt binding, nothing of ours.
HOST_PACKAGES = (
    "ca-certificates,dbus,iproute2,openssh-server,procps,python3,python3-apt,sudo,"
    "systemd,systemd-sysv,systemd-timesyncd,util-linux"
)
# What the inference image is built on where no registry can be asked for the official Python image.
PYTHON_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"

ENGINE_LOG = Path("/var/log/mayafleet-dockerd.log")

# How Docker begins its message when a program of a container was not started, so that it did nothing.
CANNOT_ENTER = "OCI runtime exec failed"

# What a tunnel in user space needs, where a kernel has no WireGuard; a virtual server has it.
TUN = Path("/dev/net/tun")

# Extra authorities an administrator gave this machine, as `update-ca-certificates` finds them.
LOCAL_AUTHORITIES = Path("/usr/local/share/ca-certificates")
CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy")

app = typer.Typer(help="Throw-away hosts on this machine.", no_args_is_help=True)


@dataclass(frozen=True)
class Lab:
    """One lab: its hosts, and where its keys, certificates and recordings lie."""

    name: str
    inventory: Path
    state: Path

    @cached_property
    def hosts(self) -> list[str]:
        """Names of all hosts, in the inventory's order; the place in this list gives a host its address."""
        groups = yaml.safe_load((self.inventory / "hosts.yml").read_text())["all"]["children"]
        return list(dict.fromkeys(host for group in groups.values() for host in group.get("hosts") or {}))

    @cached_property
    def subnet(self) -> int:
        """Third octet of the lab's network, out of its name, so that two labs on one machine do not meet."""
        return hashlib.sha256(self.name.encode()).digest()[0]

    @property
    def generated(self) -> Path:
        """The part of the inventory that this module writes."""
        return self.inventory / "lab.yml"

    def address(self, host: str) -> str:
        return f"172.29.{self.subnet}.{11 + self.hosts.index(host)}"

    def address_ipv6(self, host: str) -> str:
        return f"fd6d:6179:6131:{self.subnet:x}::{11 + self.hosts.index(host)}"

    def container(self, host: str) -> str:
        return f"{self.name}-{host}"

    def running(self) -> list[str]:
        """Hosts whose container runs, in the inventory's order."""
        names = docker("ps", "--filter", f"label={LABEL}={self.name}", "--format", "{{.Names}}").split()
        return [host for host in self.hosts if self.container(host) in names]


# --- commands -----------------------------------------------------------------------------------------------

NameOption = Annotated[str, typer.Option("--name", help="Name of the lab; two labs can run side by side.")]
InventoryOption = Annotated[
    Path | None,
    typer.Option("--inventory", "-i", help="The lab's inventory folder. [default: inventories/lab]"),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="Keys, certificates, recordings. [default: .lab/NAME]")
]
DEFAULT_NAME = "maya1-lab"


def open_lab(name: str, inventory: Path | None, state: Path | None) -> Lab:
    inventory = inventory or project.root() / "inventories" / "lab"
    if not (inventory / "hosts.yml").is_file():
        raise FleetError(
            f"{inventory} is no lab inventory: it has no hosts.yml.",
            "Name a folder such as inventories/lab with --inventory.",
            ExitCode.USAGE,
        )
    return Lab(name, inventory.resolve(), (state or project.root() / ".lab" / name).resolve())


@app.command()
def up(
    host: Annotated[
        list[str] | None, typer.Option(help="Host of the inventory to boot; repeatable. [default: the first]")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Boot every host of the inventory.")] = False,
    provision: Annotated[
        bool, typer.Option(help="Run playbooks/site.yml and speak; otherwise only boot.")
    ] = True,
    name: NameOption = DEFAULT_NAME,
    inventory: InventoryOption = None,
    state: StateOption = None,
) -> None:
    """Boot hosts, provision them with the production playbook, and let them speak."""
    lab = open_lab(name, inventory, state)
    console = Console()
    wanted = lab.hosts if every else host or lab.hosts[:1]
    for unknown in set(wanted) - set(lab.hosts):
        raise FleetError(
            f"Host {unknown!r} is not in {lab.inventory / 'hosts.yml'}.",
            f"Known hosts: {', '.join(lab.hosts)}.",
            ExitCode.USAGE,
        )
    started = time.monotonic()
    boot(lab, wanted, console)
    if not provision:
        console.print(
            f"Booted: {', '.join(wanted)}. Provision with: .venv/bin/mayafleet provision -i {lab.inventory}"
        )
        return
    result = runner.run_playbook("site", lab.inventory, limit=",".join(wanted), console=console)
    if result.exit_code:
        raise typer.Exit(result.exit_code)
    spoken = speak(lab, wanted[0], console)
    summary(lab, wanted, result, spoken, time.monotonic() - started, console)


@app.command()
def down(
    images: Annotated[
        bool, typer.Option("--images", help="Also remove the images that labs boot from.")
    ] = False,
    name: NameOption = DEFAULT_NAME,
    inventory: InventoryOption = None,
    state: StateOption = None,
) -> None:
    """Remove the lab's containers, volumes, network, keys and recordings, and nothing else."""
    lab = open_lab(name, inventory, state)
    console = Console()
    removed = 0
    if (lab.state / MARK).exists():
        ensure_engine(console)  # without it, containers would stay behind unseen
    if engine_answers():
        for kind, count in discard(lab).items():
            console.print(f"removed {count} {kind}{'s' if count > 1 else ''}")
            removed += count
        if images and (found := docker("images", "--quiet", "--filter", f"label={LABEL}").split()):
            docker("rmi", "--force", *sorted(set(found)))
            console.print(f"removed {len(set(found))} images")
        if images and (archives := lab.state.parent / "images").is_dir():
            shutil.rmtree(archives)
    if inventory_owner(lab) == lab.state:
        lab.generated.unlink()
        console.print(f"removed {lab.generated}")
        removed += 1
    if (lab.state / MARK).exists():
        shutil.rmtree(lab.state)
        console.print(f"removed {lab.state}")
        removed += 1
    console.print(
        "Nothing to remove." if not removed else "The lab is gone. Docker and its packages stay installed."
    )


@app.command()
def status(
    name: NameOption = DEFAULT_NAME, inventory: InventoryOption = None, state: StateOption = None
) -> None:
    """Show which hosts of the lab run and at which address."""
    lab = open_lab(name, inventory, state)
    running = lab.running() if engine_answers() else []
    table = Table("host", "state", "IPv4", "IPv6", title=f"lab {lab.name}")
    for host in lab.hosts:
        table.add_row(
            host, "running" if host in running else "absent", lab.address(host), lab.address_ipv6(host)
        )
    Console().print(table)


# --- booting ------------------------------------------------------------------------------------------------


def boot(lab: Lab, hosts: Sequence[str], console: Console) -> None:
    """Bring the named hosts up and write what Ansible needs to reach them. Safe to run again."""
    owner = inventory_owner(lab)
    if owner not in (None, lab.state):
        raise FleetError(
            f"{lab.generated} belongs to another lab, whose state lies in {owner}.",
            "Take that one down, or give this one a copy of the inventory folder with --inventory.",
            ExitCode.LAB,
        )
    if not lab.state.exists():
        lab.state.mkdir(parents=True, mode=0o700)
        (lab.state / MARK).touch()
    with step(console, "Docker engine"):
        ensure_engine(console)
    with step(console, "host image"):
        image = ensure_image("maya1-lab-host", HOST_PACKAGES)
    with step(console, "Python base image"):
        base_image = ensure_image("maya1-lab-python", PYTHON_PACKAGES)
        archive = save_image(base_image, lab.state.parent / "images")
    with step(console, "keys and network"):
        ensure_keys(lab)
        ensure_network(lab)
    for host in hosts:
        with step(console, f"boot {host}"):
            ensure_container(lab, host, image)
            admit_operator(lab, host)
    write_inventory(lab, base_image, archive)


def discard(lab: Lab) -> dict[str, int]:
    """Remove the lab's containers, volumes and networks. How many there were of each kind that there was."""
    mine = ("--filter", f"label={LABEL}={lab.name}")
    removed = {}
    for kind, listing, remove in (
        ("container", ("ps", "--all", "--quiet", *mine), ("rm", "--force")),
        ("volume", ("volume", "ls", "--quiet", *mine), ("volume", "rm")),
        ("network", ("network", "ls", "--quiet", *mine), ("network", "rm")),
    ):
        if found := docker(*listing).split():
            docker(*remove, *found)
            removed[kind] = len(found)
    return removed


@contextmanager
def step(console: Console, title: str) -> Iterator[None]:
    """Show that a step runs, and how long it took."""
    started = time.monotonic()
    with console.status(title):
        yield
    console.print(f"[green]ok[/] {title} [dim]{time.monotonic() - started:.1f} s[/]")


def ensure_engine(console: Console) -> None:
    """Start Debian's Docker engine where none answers: as a unit, or directly where there is no systemd."""
    if engine_answers():
        return
    if Path("/run/systemd/system").exists():
        console.print("No Docker engine answers: starting Debian's with `systemctl start docker`.")
        run(as_root(["systemctl", "start", "docker"]))
    elif not engine_runs():
        # Not through its init script, which raises limits and so fails where root lacks CAP_SYS_RESOURCE. An
        # engine that was killed leaves files with process ids, which by now may be those of other programs.
        console.print(
            f"No Docker engine answers: starting Debian's with `dockerd`, which logs to {ENGINE_LOG}."
        )
        stale = "/var/run/docker.pid /var/run/docker/containerd/containerd.pid"
        start = f"rm -f {stale}; exec dockerd >>{ENGINE_LOG} 2>&1"
        subprocess.Popen(as_root(["sh", "-c", start]), stdin=subprocess.DEVNULL, start_new_session=True)
    for _ in range(60):
        if engine_answers():
            return
        time.sleep(0.5)
    raise FleetError(
        "The Docker engine did not start within 30 s.",
        f"Read {ENGINE_LOG} or `journalctl -u docker`.",
        ExitCode.LAB,
    )


def ensure_image(repository: str, packages: str) -> str:
    """Image with the given Debian packages, made by mmdebstrap from the sources this machine itself uses.

    Returns the image's name; its tag is a digest of what goes into it, so changed packages make a new one.
    """
    suite, sources = apt_sources()
    digest = hashlib.sha256("\n".join([suite, packages, *sources]).encode()).hexdigest()[:12]
    image = f"{repository}:{suite}-{digest}"
    if docker("images", "--quiet", image):
        return image
    builder = subprocess.Popen(
        # A root file system needs a place where programs may run; /tmp and /home are often mounted without.
        as_root(["env", "TMPDIR=/var/lib",
                 "mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}",
                 # A host has keys and an identity of its own: none may come from the image.
                 "--customize-hook=rm -f $1/etc/ssh/ssh_host_* $1/etc/machine-id",
                 "--customize-hook=touch $1/etc/machine-id",
                 *([f'--aptopt=Acquire::http::Proxy "{proxy}"'] if (proxy := apt_proxy()) else []),
                 suite, "-", *sources]),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    docker("import", "--change", f"LABEL {LABEL}=image", "-", image, stdin=builder.stdout)
    if builder.wait() != 0:
        docker("rmi", image)
        raise FleetError(f"mmdebstrap could not make {image}.", "Its last lines are above.", ExitCode.LAB)
    return image


def apt_sources() -> tuple[str, list[str]]:
    """Codename of this machine's distribution and the one-line apt sources it uses for that distribution."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    suite = release.get("VERSION_CODENAME", "").strip('"')
    targets = run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    )
    wanted = ("main", "universe")
    found = {
        (site, name, component)
        for site, name, component in (line.split() for line in targets.splitlines() if len(line.split()) == 3)
        if name in (suite, f"{suite}-updates", f"{suite}-security") and component in wanted
    }
    if not suite or not found:
        raise FleetError(
            "apt on this machine names no source for its own distribution.",
            "The lab runs on Debian and Ubuntu: run `apt-get update` and try again.",
            ExitCode.LAB,
        )
    return suite, [f"deb {site} {name} {component}" for site, name, component in sorted(found)]


def save_image(image: str, folder: Path) -> Path:
    """The image as a file that a host's Docker loads; made once."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{image.replace(':', '-')}.tar"
    if not archive.exists():
        partial = archive.with_suffix(f".{os.getpid()}")  # two labs may make it at once
        docker("save", "--output", str(partial), image)
        if docker_command()[0] == "sudo":
            run(["sudo", "chown", str(os.getuid()), str(partial)])
        partial.rename(archive)
    return archive


def ensure_keys(lab: Lab) -> None:
    """SSH key, and the key that signs tokens. The certificate authority is made by role tls."""
    ssh_key = lab.state / "ssh" / "id_ed25519"
    if not ssh_key.exists():
        ssh_key.parent.mkdir(mode=0o700, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", lab.name, "-f", str(ssh_key)])
    if not (lab.state / "jwt" / "private.pem").exists():
        tokens.create_key_pair(lab.state / "jwt")
    # Docker would hand containers its own loopback resolver, which containers inside them cannot reach.
    resolver = Path("/run/systemd/resolve/resolv.conf")
    shutil.copyfile(resolver if resolver.exists() else "/etc/resolv.conf", lab.state / "resolv.conf")


def ensure_network(lab: Lab) -> None:
    if not docker("network", "ls", "--quiet", "--filter", f"name=^{lab.name}$"):
        ranges = ("--subnet", f"172.29.{lab.subnet}.0/24", "--subnet", f"fd6d:6179:6131:{lab.subnet:x}::/64")
        docker("network", "create", "--label", f"{LABEL}={lab.name}", "--ipv6", *ranges, lab.name)


def ensure_container(lab: Lab, host: str, image: str) -> None:
    name, volume = lab.container(host), f"{lab.container(host)}-docker"
    state = docker("ps", "--all", "--filter", f"name=^{name}$", "--format", "{{.State}}").strip()
    if not state:
        docker("volume", "create", "--label", f"{LABEL}={lab.name}", volume)
        # No port is published: only this machine reaches the host, at its own address. systemd needs its
        # cgroups and three capabilities (SYS_PTRACE for units that hide other processes and use a user
        # namespace); `--privileged` is not asked for, and fails on machines that lack CAP_SYS_RESOURCE.
        docker("run", "--detach", "--name", name, "--hostname", host, "--label", f"{LABEL}={lab.name}",
               "--network", lab.name, "--ip", lab.address(host), "--ip6", lab.address_ipv6(host),
               "--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--cap-add", "SYS_PTRACE",
               "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
               "--tmpfs", "/run", "--tmpfs", "/tmp", "--volume", f"{volume}:/var/lib/docker",
               "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--cgroupns", "host",
               "--volume", f"{lab.state / 'resolv.conf'}:/etc/resolv.conf:ro",
               *(["--device", str(TUN)] if TUN.exists() else []),
               image, "/lib/systemd/systemd")  # fmt: skip
    elif state != "running":
        docker("start", name)
    await_boot(lab, host)


def await_boot(lab: Lab, host: str) -> None:
    """Wait until systemd in the host has started all that it starts."""
    name, said = lab.container(host), ""
    for _ in range(120):
        try:  # once: while it starts, it may not answer at all
            said = docker("exec", name, "sh", "-c", "systemctl is-system-running || true").strip()
        except FleetError as error:
            said = error.message
        if said in ("running", "degraded"):
            return
        time.sleep(0.5)
    raise FleetError(
        f"{host} did not finish booting within 60 s: {said}", f"Look at: docker logs {name}", ExitCode.LAB
    )


def admit_operator(lab: Lab, host: str) -> None:
    """What cloud-init does at a provider: host keys, an operator with our key and sudo. Then pin the key."""
    public_key = (lab.state / "ssh" / "id_ed25519.pub").read_text()
    exec_in(
        lab,
        host,
        """
        set -e
        # The image's package lists are empty but new, which would pass for up to date.
        if ! id ops >/dev/null 2>&1; then
            touch -d @0 /var/lib/apt/lists
            useradd --create-home --shell /bin/bash ops
        fi
        install -d -m 700 -o ops -g ops /home/ops/.ssh
        install -m 600 -o ops -g ops /dev/stdin /home/ops/.ssh/authorized_keys
        echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops
        chmod 440 /etc/sudoers.d/ops
        if [ ! -e /etc/ssh/ssh_host_ed25519_key ]; then ssh-keygen -A >/dev/null; fi
        # Without host keys it gave up during the first boot.
        systemctl is-active --quiet ssh || { systemctl reset-failed ssh; systemctl start ssh; }
        """,
        stdin=public_key,
    )
    host_key = " ".join(exec_in(lab, host, "cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2])
    known_hosts = lab.state / "ssh" / "known_hosts"
    others = [
        line
        for line in (known_hosts.read_text().splitlines() if known_hosts.exists() else [])
        if line.split()[0] != lab.address(host)
    ]
    known_hosts.write_text("\n".join([*others, f"{lab.address(host)} {host_key}"]) + "\n")


def write_inventory(lab: Lab, base_image: str, archive: Path) -> None:
    """lab.yml beside hosts.yml: addresses and keys of the hosts, and what this machine's network needs."""
    variables: dict[str, Any] = {
        "ansible_user": "ops",
        "ansible_ssh_private_key_file": f"{lab.state}/ssh/id_ed25519",
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={lab.state}/ssh/known_hosts -o IdentitiesOnly=yes",
        "lab_state": str(lab.state),
        "lab_base_image": base_image,
        "lab_base_image_archive": str(archive),
        **machine_settings(),
    }
    hosts = {
        host: {
            "ansible_host": lab.address(host),
            "lab_address": lab.address(host),
            "lab_address_ipv6": lab.address_ipv6(host),
        }
        for host in lab.hosts
    }
    text = "---\n# Written by `mayafleet lab up`; do not edit.\n" + yaml.safe_dump(
        {"all": {"vars": variables, "hosts": hosts}}
    )
    lab.generated.write_text(text)


def inventory_owner(lab: Lab) -> Path | None:
    """State folder of the lab that the inventory folder describes now."""
    if not lab.generated.exists():
        return None
    return Path(yaml.safe_load(lab.generated.read_text())["all"]["vars"]["lab_state"])


def machine_settings() -> dict[str, Any]:
    """Authorities, proxies, pip and apt settings of this machine, as variables of role base."""
    settings: dict[str, Any] = {
        "base_extra_ca_certificates": [
            {"name": path.stem, "content": path.read_text()} for path in extra_authorities()
        ]
    }
    environment = {v: os.environ.get(v) or os.environ.get(v.upper()) for v in PROXY_VARIABLES}
    settings["base_proxy_environment"] = {k: v for k, v in environment.items() if v}
    index = (
        os.environ.get("PIP_INDEX_URL")
        or run(["pip3", "config", "get", "global.index-url"], check=False).strip()
    )
    if index.startswith("http"):
        settings["base_pip_index_url"] = index
    if proxy := apt_proxy():
        settings["base_apt_proxy"] = proxy
    return settings


def apt_proxy() -> str:
    """Proxy that apt on this machine uses for http; empty for none."""
    return (
        run(["apt-config", "shell", "proxy", "Acquire::http::Proxy"])
        .strip()
        .removeprefix("proxy=")
        .strip("'")
    )


def extra_authorities() -> list[Path]:
    """Certificates that an administrator added to this machine, in the usual folder or by a variable."""
    added = sorted(LOCAL_AUTHORITIES.rglob("*.crt"))
    named = {Path(value) for variable in CA_VARIABLES if (value := os.environ.get(variable))}
    system = Path("/etc/ssl/certs")
    return added + sorted(path for path in named if path.is_file() and system not in path.resolve().parents)


# --- the end of `lab up` ------------------------------------------------------------------------------------


def speak(lab: Lab, host: str, console: Console) -> speech.Spoken:
    with step(console, "speak"):
        return speech.say(
            SENTENCE,
            speech.connection(lab.inventory, host),
            lab.state / "speech.wav",
            audio_format="wav",
            stream=True,
        )


def summary(
    lab: Lab,
    hosts: Sequence[str],
    result: runner.RunResult,
    spoken: speech.Spoken,
    seconds: float,
    console: Console,
) -> None:
    table = Table(title=f"lab {lab.name} is up ({seconds:.0f} s)", show_header=False, min_width=60)
    for host in hosts:
        table.add_row("host", f"{host}  https://{lab.address(host)}")
        for line in result.not_run.get(host, []):
            table.add_row("not run", line)
    table.add_row("engine", spoken.engine)
    table.add_row("TTFA", f"{spoken.ttfa:.3f} s")
    table.add_row("RTF", f"{spoken.rtf:.3f}")
    table.add_row("audio", f"{spoken.duration:.2f} s in {spoken.path}")
    console.print(table)
    inventory, ssh = os.path.relpath(lab.inventory), os.path.relpath(lab.state / "ssh")
    command = ".venv/bin/mayafleet"
    console.print(
        "Next:\n"
        f"  {command} say 'Good morning from the lab.' -i {inventory} --host {hosts[0]} -o hello.wav\n"
        f"  {command} verify -i {inventory} --limit {','.join(hosts)}\n"
        f"  ssh -i {ssh}/id_ed25519 -o UserKnownHostsFile={ssh}/known_hosts ops@{lab.address(hosts[0])}\n"
        "  make lab-down",
        soft_wrap=True,
    )


# --- running programs ---------------------------------------------------------------------------------------


def run(command: Sequence[str], *, stdin: str | IO[bytes] | None = None, check: bool = True) -> str:
    """Run a program and return what it printed. Raises FleetError with its last line when it fails."""
    source: dict[str, Any] = {"input": stdin} if isinstance(stdin, str | None) else {"stdin": stdin}
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command, capture_output=True, text=True, check=False, **source
        )
    except FileNotFoundError:
        raise FleetError(
            f"The program {command[0]} is missing.", "Run `make lab`, which installs it.", ExitCode.LAB
        ) from None
    if check and done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise FleetError(
            f"`{' '.join(command[:4])}` failed: {lines[-1]}", "Mend that and run again.", ExitCode.LAB
        )
    return done.stdout


def as_root(command: Sequence[str]) -> list[str]:
    return list(command) if os.geteuid() == 0 else ["sudo", *command]


def docker_command() -> list[str]:
    """`docker`, with sudo where this user may not talk to the engine's socket."""
    direct = os.geteuid() == 0 or os.access("/var/run/docker.sock", os.W_OK)
    return ["docker"] if direct else ["sudo", "docker"]


def docker(*arguments: str, stdin: str | IO[bytes] | None = None) -> str:
    return run([*docker_command(), *arguments], stdin=stdin)


def engine_answers() -> bool:
    return subprocess.run([*docker_command(), "info"], capture_output=True, check=False).returncode == 0


def engine_runs() -> bool:
    """Whether a dockerd is there that has yet to answer."""
    for command in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # processes end while we look
            if command.read_text().strip() == "dockerd":
                return True
    return False


def exec_in(lab: Lab, host: str, script: str, stdin: str | None = None) -> str:
    """Run a script in a host and return what it printed. Raises FleetError when it fails."""
    command = ("exec", "--interactive", lab.container(host), "sh", "-c", script)
    for _ in range(10):
        try:
            return docker(*command, stdin=stdin)
        except FleetError as error:
            # Docker can't enter a host in a moment in which its systemd makes or moves control groups.
            if CANNOT_ENTER not in error.message:
                raise
        time.sleep(0.5)
    return docker(*command, stdin=stdin)
