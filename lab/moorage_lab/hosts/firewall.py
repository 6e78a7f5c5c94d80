"""The firewall rules of a private Engine on a machine whose firewall drops forwarded packets.

They are in a chain with the Engine's own name. Docker's chains stay unchanged: a second dockerd that manages firewall
rules deletes those of the first.
"""

import ipaddress
import shutil
import subprocess

from moorage_lab.programs.processes import SYSTEM_PATH


def allow(name: str, network: ipaddress.IPv4Network, *, outside: bool) -> None:
    """Let the containers of a network reach each other, and optionally the outside."""
    disallow(name)
    inner = str(network)
    _run("filter", "-N", name)
    _run("filter", "-A", name, "-s", inner, "-d", inner, "-j", "ACCEPT")
    if outside:
        _run("filter", "-A", name, "-s", inner, "-j", "ACCEPT")
        _run("filter", "-A", name, "-d", inner, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
        _run("nat", "-N", name)
        _run("nat", "-A", name, "-s", inner, "!", "-d", inner, "-j", "MASQUERADE")
        _run("nat", "-A", "POSTROUTING", "-j", name)
    _run("filter", "-I", "FORWARD", "-j", name)


def disallow(name: str) -> None:
    """Remove the rules that `allow` made under that name, if there are any."""
    if _program() is None:
        return
    for table, parent in (("filter", "FORWARD"), ("nat", "POSTROUTING")):
        for rule in (("-D", parent, "-j", name), ("-F", name), ("-X", name)):
            _run(table, *rule, check=False)


def _run(table: str, *rule: str, check: bool = True) -> None:
    program = _program()
    if program is None:
        raise RuntimeError("There is no iptables on this machine; on Debian or Ubuntu: apt-get install iptables.")
    done = subprocess.run(  # noqa: S603  # argv of the lab's own making, no shell
        [program, "--wait", "-t", table, *rule], check=False, capture_output=True, text=True
    )
    if check and done.returncode:
        raise RuntimeError(f"iptables {' '.join(rule)} failed: {done.stderr.strip()}")


def _program() -> str | None:
    return shutil.which("iptables", path=SYSTEM_PATH)
