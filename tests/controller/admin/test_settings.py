"""Settings: documented names, a sentence for each invalid value, and secrets that are never printed."""

import stat
from pathlib import Path

import pytest
from factories import ENCRYPTION_KEY, JWT_SECRET, make_settings
from moorage_controller import settings as settings_module
from moorage_controller.errors import StartupError
from moorage_controller.settings import Settings

_NAMES = [name.upper() for name in Settings.model_fields]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)


def test_settings_need_no_variable() -> None:
    settings = settings_module.load()
    assert (settings.host, settings.port, settings.node_env) == ("127.0.0.1", 3000, "development")
    assert settings.base_url == "http://127.0.0.1:3000"
    assert settings.sqlite_path == Path("/var/lib/moorage-controller/moorage.db")


def test_documented_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "PORT": "8080",
        "NODE_ENV": "production",
        "DATABASE_URL": "postgresql://user:password@localhost:5432/devops_dashboard",
        "JWT_SECRET": JWT_SECRET,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "LOG_LEVEL": "warning",
        "PUBLIC_URL": "https://moorage.example.com/",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = settings_module.load()
    assert (settings.port, settings.node_env, settings.log_level) == (8080, "production", "warning")
    assert settings.database_url == given["DATABASE_URL"]
    assert settings.sqlite_path is None
    assert settings.base_url == "https://moorage.example.com"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("NODE_ENV", "prod"),
        ("LOG_LEVEL", "loud"),
        ("OPERATION_LIMIT_MINUTES", "0"),
    ],
)
def test_invalid_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=name) as caught:
        settings_module.load()
    assert caught.value.code == "bad_setting"


@pytest.mark.parametrize(
    ("secret", "environment", "code"),
    [
        ("", "production", "missing_secret"),
        ("x" * 31, "production", "short_secret"),
        ("x" * 31, "development", "short_secret"),
        ("your-super-secret-jwt-key-change-this", "production", "well_known_secret"),
        ("your-encryption-key-for-ssh-credentials", "production", "well_known_secret"),
    ],
)
@pytest.mark.parametrize("name", ["JWT_SECRET", "ENCRYPTION_KEY"])
def test_weak_or_missing_secret_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, secret: str, environment: str, code: str
) -> None:
    for variable, value in (("JWT_SECRET", JWT_SECRET), ("ENCRYPTION_KEY", ENCRYPTION_KEY)):
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("NODE_ENV", environment)
    monkeypatch.setenv(name, secret)
    with pytest.raises(StartupError, match=name) as caught:
        settings_module.load()
    assert caught.value.code == code
    assert not secret or secret not in caught.value.sentence


def test_settings_can_be_printed_without_a_secret(tmp_path: Path) -> None:
    given = {
        "jwt_secret": "jwt-" * 10,
        "encryption_key": "enc-" * 10,
        "encryption_key_previous": "old-" * 10,
        "admin_password": "pw-" * 10,
        "database_url": "postgresql://u:db-secret@h/n",
    }
    shown = repr(make_settings(tmp_path, **given))
    assert not [value for value in (*given.values(), "db-secret") if value in shown]


def test_data_folder_has_owner_only_mode(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "data"
    settings_module.prepare_data_dir(make_settings(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_uncreatable_data_folder_is_reported_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="MOORAGE_DATA_DIR"):
        settings_module.prepare_data_dir(make_settings(tmp_path / "file" / "data"))


def test_missing_secret_is_generated_once_with_owner_only_mode(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, jwt_secret="")
    made = settings_module.secret(settings, "jwt_secret")
    assert len(made) >= 32
    assert settings_module.secret(settings, "jwt_secret") == made
    assert stat.S_IMODE((tmp_path / "jwt_secret").stat().st_mode) == 0o600
    assert settings_module.secret(make_settings(tmp_path), "jwt_secret") == JWT_SECRET


def test_damaged_secret_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "encryption_key").write_text("short\n")
    with pytest.raises(StartupError, match="damaged"):
        settings_module.secret(make_settings(tmp_path, encryption_key=""), "encryption_key")
    assert (tmp_path / "encryption_key").read_text() == "short\n"
