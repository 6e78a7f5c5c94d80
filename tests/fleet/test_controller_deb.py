"""The controller's Debian package on a host that boots systemd: from installation to purge."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import moorage_migrations
import pytest
from fleet_controller import OLD, files_of
from moorage_lab.api import Api
from moorage_lab.hosts.host import Fleet, Host, HostError
from moorage_lab.waiting import eventually
from running_stack import SLEEPER
from sqlalchemy import create_engine

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
NEW = version("moorage-controller")
SETTINGS = "/etc/moorage-controller/environment"
DATA = "/var/lib/moorage-controller"
BACKUPS = "/var/backups/moorage-controller"
HOOK = """\
#!/bin/sh
cp "$1" /var/lib/moorage-controller/off-site
"""


@pytest.fixture(scope="module")
def packages(controller_bundle: Path) -> dict[str, Path]:
    """Return two packages of one bundle, which differ in their version."""
    made = {}
    bundle = controller_bundle / f"moorage-controller-{NEW}-linux-x86_64.tar.gz"
    for release in (OLD, NEW):
        argv = [sys.executable, str(ROOT / "packaging/deb.py"), "controller", "--dist", str(controller_bundle)]
        argv += ["--version", release, "--bundle", str(bundle), "--level", "1"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        made[release] = controller_bundle / f"moorage-controller_{release}_amd64.deb"
    return made


@pytest.fixture(scope="module")
def host(fleet: Fleet, packages: dict[str, Path]) -> Host:
    """Return a host that the packages were carried to."""
    made = fleet.add()[0]
    for release, package in packages.items():
        made.write(f"/root/{release}.deb", package.read_bytes())
    return made


class Place:
    """The package on its host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def install(self, release: str) -> str:
        """Install a release, and return what dpkg said."""
        try:
            return self.host.run("dpkg", "--install", f"/root/{release}.deb")
        except HostError as error:
            log = self.host.run("journalctl", "--no-pager", "--lines", "20", "--unit", "moorage-controller")
            raise HostError(f"{error}\n{log}") from None

    def settings(self) -> dict[str, str]:
        """Return the settings."""
        lines = self.host.run("cat", SETTINGS).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    def open(self) -> None:
        """Configure an address that this machine can reach."""
        self.host.run("sed", "-i", "s/^HOST=.*/HOST=0.0.0.0/", SETTINGS)
        self.host.run("systemctl", "restart", "moorage-controller")

    def admin(self) -> Api:
        """Return its API, as the first admin."""
        return Api(f"http://{self.host.address}:3000").login("admin", self.settings()["ADMIN_PASSWORD"])

    def state(self, unit: str, what: str = "ActiveState") -> str:
        """Return a property of a unit."""
        return self.host.run("systemctl", "show", "--value", "--property", what, unit).strip()


def test_controller_package_installs_serves_and_purges(host: Host, tmp_path: Path) -> None:
    place, before = Place(host), files_of(host)
    assert "the first admin is admin, with the password in" in place.install(OLD)
    assert place.state("moorage-controller") == "active"
    assert place.state("moorage-controller-backup.timer") == "active"
    assert host.run("stat", "--format", "%a %U", SETTINGS, DATA, f"{DATA}/moorage.db").split() == (
        ["600", "root", "700", "moorage-controller", "600", "moorage-controller"]
    )
    assert "moorage-controller" in host.run("ps", "-o", "user:20=", "-p", place.state("moorage-controller", "MainPID"))
    secrets = {name: value for name, value in place.settings().items() if name.endswith(("SECRET", "KEY", "TOKEN"))}
    assert len(set(secrets.values())) == 3
    assert all(len(value) == 48 for value in secrets.values())
    runs_an_app_on_this_host(place)
    a_backup_is_made_proved_and_carried_away(place)
    an_upgrade_keeps_and_migrates_the_data(place, tmp_path)
    assert secrets.items() <= place.settings().items()

    with pytest.raises(HostError, match=f"its database can't go back to {OLD}"):
        place.install(OLD)
    assert place.state("moorage-controller") == "active", host.run("journalctl", "--no-pager", "-n", "30")

    host.run("dpkg", "--remove", "moorage-controller")
    assert host.succeeds("test", "-e", f"{DATA}/moorage.db")
    with pytest.raises(HostError, match=f"its database can't go back to {OLD}"):
        place.install(OLD)
    assert "The backups in" in host.run("dpkg", "--purge", "moorage-controller")
    assert host.succeeds("test", "-d", BACKUPS)
    host.run("rm", "-r", BACKUPS)
    # Expected leftovers of Engine, app and agent.
    left = {path for path in files_of(host) - before if "moorage-controller" in path}
    assert left == set()


def runs_an_app_on_this_host(place: Place) -> None:
    """Install the agent that the package brought, over SSH, and start an app."""
    host = place.host
    place.open()
    admin = place.admin()
    host.write("/srv/web/compose.yaml", SLEEPER)
    key = {"sshUser": "root", "sshPrivateKey": host.key.read_text()}
    server = admin.post("/api/servers", {"name": "here", "address": host.address, **key}).expect(201)
    done = admin.post(f"/api/servers/{server['id']}/agent", {"allowRoots": ["/srv"]}).expect(200)
    assert done["state"] == "succeeded", done
    project = admin.post("/api/projects", {"name": "kept"}).expect(201)
    about = {"name": "web", "projectId": project["id"], "serverId": server["id"], "cdPath": "/srv/web"}
    app = admin.post("/api/apps", about).expect(201)
    assert admin.post(f"/api/apps/{app['id']}/start", {"timeout": 60}).expect(200)["status"] == "running"
    metrics = admin.get("/metrics", headers={"Authorization": f"Bearer {place.settings()['METRICS_TOKEN']}"}).expect(
        200
    )
    assert 'moorage_apps{status="running"} 1.0' in metrics


def a_backup_is_made_proved_and_carried_away(place: Place) -> None:
    """Run the nightly backup; check its retention, and that a failing hook loses nothing."""
    host, unit = place.host, "moorage-controller-backup.service"
    host.run("install", "-o", "moorage-controller", "/dev/null", f"{BACKUPS}/moorage-old")
    host.run("touch", "-d", "30 days ago", f"{BACKUPS}/moorage-old")
    host.write("/etc/moorage-controller/backup-hook", "#!/bin/sh\nexit 3\n", mode=0o755)
    assert not host.succeeds("systemctl", "start", unit)
    assert place.state(unit) == "failed"
    assert "moorage-old" in host.run("ls", BACKUPS)
    host.write("/etc/moorage-controller/backup-hook", HOOK, mode=0o755)
    host.run("systemctl", "start", unit)
    names = host.run("ls", BACKUPS).split()
    assert "moorage-old" not in names
    assert host.run("cmp", f"{BACKUPS}/{names[-1]}", f"{DATA}/off-site") == ""
    assert host.run("stat", "--format", "%a %U", f"{BACKUPS}/{names[-1]}").split() == ["600", "moorage-controller"]
    told = host.run("journalctl", "--no-pager", "--unit", unit)
    assert "All of it is restored" in told
    assert place.settings()["ENCRYPTION_KEY"] not in host.run("journalctl", "--no-pager")
    assert "was made, with the password" in host.run("moorage-controller", "create-user", "carl")


def an_upgrade_keeps_and_migrates_the_data(place: Place, tmp_path: Path) -> None:
    """Take the tables back to the revision before, so that the upgrade has something to migrate, and upgrade."""
    host = place.host
    host.run("systemctl", "stop", "moorage-controller")
    (tmp_path / "moorage.db").write_bytes(host.read(f"{DATA}/moorage.db"))
    engine = create_engine(f"sqlite:///{tmp_path / 'moorage.db'}")
    with engine.begin() as connection:
        moorage_migrations.downgrade(connection, "-1")
        older = moorage_migrations.current_revision(connection)
    engine.dispose()
    assert older != moorage_migrations.head_revision()
    host.run("sh", "-c", f"rm {DATA}/moorage.db*")
    host.write(f"{DATA}/moorage.db", (tmp_path / "moorage.db").read_bytes(), mode=0o600)
    host.run("chown", "moorage-controller:", f"{DATA}/moorage.db")

    place.install(NEW)
    assert place.state("moorage-controller") == "active"
    assert any(name.startswith(f"before-{NEW}-") for name in host.run("ls", BACKUPS).split())
    (app,) = place.admin().get("/api/apps").expect(200)
    path = f"/api/apps/{app['id']}"
    eventually(lambda: place.admin().get(path).expect(200)["status"] == "running", what="the app seen again")
    place.admin().post(f"{path}/stop").expect(200)
    assert host.run("docker", "ps", "--quiet") == ""
    (server,) = place.admin().get("/api/servers").expect(200)
    place.admin().delete(f"/api/servers/{server['id']}/agent").expect(200)
