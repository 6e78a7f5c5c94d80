"""The sample image, built from this machine's busybox: nothing is pulled."""

import hashlib
import io
import struct
import tarfile
from contextlib import closing
from pathlib import Path

import docker

from moorage_lab.programs.engine import Engine

SAMPLE_IMAGE = "moorage-sample:local"

_BUSYBOX = Path("/bin/busybox")
_APPLETS = """
    cat chmod cp date dd echo env expr false grep head hostname httpd id kill ls mkdir mktemp mv nc nproc ps rm sed
    seq sh sleep sort stat tail tee test touch tr true wc wget
"""
_LABEL = "moorage.sample"
_ACCOUNTS = {"etc/passwd": b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", "etc/group": b"root:x:0:\n"}
_INTERPRETER = 3
"""PT_INTERP of elf(5): a program header only a dynamically linked program has."""


def ensure_sample_image(engine: Engine) -> str:
    """Import SAMPLE_IMAGE into an Engine, unless the same one exists, and return its name.

    Raises RuntimeError if this machine's busybox is missing or needs shared libraries.
    """
    archive = sample_archive()
    digest = hashlib.sha256(archive).hexdigest()
    with closing(engine.client()) as client:
        if _present(client) != digest:
            repository, tag = SAMPLE_IMAGE.split(":")
            client.api.import_image_from_data(
                archive,
                repository=repository,
                tag=tag,
                changes=["ENV PATH=/bin", 'CMD ["/bin/sh"]', f"LABEL {_LABEL}={digest}"],
            )
    return SAMPLE_IMAGE


def sample_archive() -> bytes:
    """Return the sample image's files as a tar, for `docker import`. Raises RuntimeError as `ensure_sample_image`."""
    return _archive(_static_busybox())


def _present(client: docker.DockerClient) -> str | None:
    try:
        return client.images.get(SAMPLE_IMAGE).labels.get(_LABEL)
    except docker.errors.ImageNotFound:
        return None


def _static_busybox() -> bytes:
    try:
        program = _BUSYBOX.read_bytes()
    except FileNotFoundError:
        program = b""
    if not program or _needs_libraries(program):
        raise RuntimeError(f"{_BUSYBOX} is missing or needs shared libraries; install the package busybox-static.")
    return program


def _needs_libraries(program: bytes) -> bool:
    """Return whether a 64-bit little-endian ELF program names an interpreter (a dynamic linker)."""
    table, size, count = struct.unpack_from("<Q", program, 32)[0], *struct.unpack_from("<HH", program, 54)
    return any(struct.unpack_from("<I", program, table + size * n)[0] == _INTERPRETER for n in range(count))


def _archive(busybox: bytes) -> bytes:
    """Return the image's files as a tar, the same bytes each time."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("www", 0o755)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        for name, content in (("bin/busybox", busybox), *_ACCOUNTS.items()):
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(content), 0o755 if name == "bin/busybox" else 0o644
            tar.addfile(file, io.BytesIO(content))
        for applet in _APPLETS.split():
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return target.getvalue()
