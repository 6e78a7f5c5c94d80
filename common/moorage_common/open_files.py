"""This process's limit of open files and connections."""

import resource

_WANTED = 65_536


def raise_limit() -> int:
    """Raise the soft limit as far as is sensible and the hard limit allows; return the effective one.

    Shells, systemd and Docker start programs with 1024, which a flood of connections exhausts.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else _WANTED
