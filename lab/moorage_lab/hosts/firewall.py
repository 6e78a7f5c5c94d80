"""The rules a private Engine needs on a machine whose firewall forwards nothing by itself.

They stand in a chain of the Engine's own name. Docker's chains are left alone: a second dockerd that manages
firewall rules throws away those of the first.
"""

import ipaddress
import shutil
import subprocess

from moorage_lab.programs.processes import SYSTEM_PATH


def allow(name: str, network: ipaddress.IPv4Network, *, outside: bool) -> None:
    """Let the containers of a network reach each other, and the outside too where wanted."""
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
    """Remove what `allow` made under that name; nothing happens where there is nothing."""
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
