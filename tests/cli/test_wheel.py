"""The wheel, installed into an empty environment: it needs no checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.cli.conftest import SECONDS, Serving, crafely

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_every_file_that_runs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    ours = [("crafely", f"*.{kind}") for kind in ("py", "html", "css", "sql")]
    for folder, pattern in (("sql", "*.sql"), ("migrations", "*.sql"), *ours):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob(pattern)}
        assert files
        prefix = "" if folder == "crafely" else "crafely/"
        assert {f"{prefix}{file}" for file in files} <= held
    assert not [name for name in held if name.startswith("tests/")]


def test_installed_elsewhere_it_serves(wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    environment = folder / "venv"
    venv.create(environment, symlinks=True)
    bin_, libraries = environment / "bin", sysconfig.get_path("purelib", vars={"base": str(environment)})
    pip = [sys.executable, "-m", "pip", f"--python={bin_ / 'python'}", "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, timeout=SECONDS)
    # What it depends on is the same as here, and was installed once; nothing of the checkout comes along.
    (Path(libraries) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    program = str(bin_ / "crafely")
    where = [str(bin_ / "python"), "-c", "import crafely; print(crafely.__file__)"]
    found = subprocess.run(where, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert found.startswith(str(environment))
    serving = Serving(folder, command=[program, "serve", "--port", "0"]).ready()
    assert serving.get("/v1/me", serving.key)[0] == 200
    assert serving.get("/docs")[0] == 200
    serving.stop()
    assert crafely(folder, "migrate", "status", program=program).returncode == 0
