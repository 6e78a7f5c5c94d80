"""Uploads to a host: complete or not at all, through a shell only."""

import asyncio
import hashlib
import shutil
from pathlib import Path

import pytest
from moorage_controller.hosts.bundle import Bundle
from moorage_controller.hosts.ssh.install import Installer
from moorage_controller.hosts.ssh.session.host_session import HostSession
from moorage_controller.hosts.ssh.session.upload import UploadFailedError
from moorage_controller.hosts.transport import ContactLostError
from moorage_lab.programs.sshd import PrivateSshd
from transport_rigs import SshDesk

from .disks import small_disk

CONTENT = bytes(range(256)) * 12_345 + b"an odd end"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def folder(sshd: PrivateSshd, name: str) -> Path:
    made = sshd.home("op") / name
    made.mkdir()
    shutil.chown(made, sshd.uid("op"))
    return made


async def send(link: HostSession, path: Path, content: bytes = CONTENT, digest: str = DIGEST) -> list[int]:
    """Upload, and return the reported progress."""
    told: list[int] = []

    async def progress(arrived: int) -> None:
        told.append(arrived)

    await link.upload(content, digest, str(path), mode="755", progress=progress)
    return told


def stored(path: str) -> tuple[bytes, int, int] | None:
    """Return a file's content, its mode and its folder's; None where there is no folder."""
    file = Path(path)
    if not file.parent.exists():
        return None
    return file.read_bytes(), file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777


async def test_upload_arrives_completely_and_only_once(desk: SshDesk) -> None:
    place = folder(desk.sshd, "whole") / "a file's name"
    async with desk.transport()._host.site() as site:
        told = await send(site.link, place)
        assert told == sorted(told)
        assert (told[0], told[-1]) == (0, len(CONTENT))
        assert place.read_bytes() == CONTENT
        assert place.stat().st_mode & 0o777 == 0o755
        assert await send(site.link, place) == []
    assert list(place.parent.iterdir()) == [place]


async def test_concurrent_uploads_of_same_file_produce_one_complete_file(desk: SshDesk) -> None:
    place = folder(desk.sshd, "two") / "program"
    async with desk.transport()._host.site() as one, desk.transport()._host.site() as other:
        told = await asyncio.gather(send(one.link, place), send(other.link, place))
    assert [] in told
    assert place.read_bytes() == CONTENT
    assert list(place.parent.iterdir()) == [place]


async def test_interrupted_upload_resumes_without_resending(desk: SshDesk) -> None:
    place = folder(desk.sshd, "cut") / "program"
    async with desk.transport()._host.site() as site:

        async def cut(arrived: int) -> None:
            if arrived > len(CONTENT) // 3:
                site.link.connection.abort()

        with pytest.raises(ContactLostError):
            await site.link.upload(CONTENT, DIGEST, str(place), progress=cut)
    assert not place.exists()
    async with desk.transport()._host.site() as site:
        told = await send(site.link, place)
    assert told[0] > len(CONTENT) // 3
    assert place.read_bytes() == CONTENT


async def test_corrupted_upload_is_discarded(desk: SshDesk) -> None:
    place = folder(desk.sshd, "other") / "program"
    async with desk.transport()._host.site() as site:
        with pytest.raises(UploadFailedError, match="did not arrive whole"):
            await send(site.link, place, CONTENT[:-1] + b"x")
        assert list(place.parent.iterdir()) == []
        # And a partial upload isn't resumed for another file.
        part = place.parent / f"{place.name}.{DIGEST}.part"
        part.write_bytes(b"x" * (len(CONTENT) + 1))
        shutil.chown(part, desk.sshd.uid("op"))
        await send(site.link, place)
    assert place.read_bytes() == CONTENT


async def test_agent_bundle_is_uploaded_to_its_own_folder(desk: SshDesk) -> None:
    told: list[int] = []

    async def progress(arrived: int) -> None:
        told.append(arrived)

    async with desk.transport()._host.site() as site:
        installer = Installer(site.link)
        path = await installer.upload(Bundle("0.1.0-1a2b3c4d", CONTENT, DIGEST), progress)
        assert stored(path) == (CONTENT, 0o600, 0o700)
        assert told[-1] == len(CONTENT)
        await installer.clear(path)
        assert stored(path) is None


async def test_too_small_disk_is_reported_and_left_unchanged(desk: SshDesk) -> None:
    place = folder(desk.sshd, "small")
    with small_disk(desk.sshd, place, "size=1m") as disk:
        async with desk.transport()._host.site() as site:
            with pytest.raises(UploadFailedError, match="No space left on device"):
                await send(site.link, place / "program")
        assert list(disk.iterdir()) == []
