"""The surroundings of a command: .env, config directories behind symlinks, incompatible flags."""

import pytest

from sft.api import compose
from sft.config.compose import check_command, config_loader
from sft.config.entry.surroundings import read_dotenv
from sft.config.errors import UserError


@pytest.mark.parametrize(
    "content", [b"A=\xff\xfe\n", "A=b\n".encode("utf-16"), b"A=x\0y\n", b"X0=aaaaaaaaaa\n" + b"".join(
        b"X%d=%s\n" % (n, b"${X%d}" % (n - 1) * 10) for n in range(1, 10)
    )], ids=["no UTF-8", "UTF-16", "NUL", "endless"]
)  # fmt: skip
def test_a_broken_env_file_is_reported(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(UserError, match=r"\.env: cannot be read"):
        read_dotenv()


def test_configs_behind_a_symlink_are_checked_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/evil.yaml").write_text("a: &a [*a]\n")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/callbacks").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "conf")  # a circle ends
    with pytest.raises(UserError, match="has aliases that expand to more than"):
        check_command(config_loader(), "train", ["callbacks=evil"], "train", False)


def test_unsupported_label_smoothing_is_refused():
    with pytest.raises(UserError, match=r"trainer\.label_smoothing_factor: the loss is plain cross entropy"):
        compose("model=tiny", "trainer.label_smoothing_factor=0.1")
    assert (
        compose("model=tiny", "trainer=trl", "trainer.label_smoothing_factor=0.1").trainer.label_smoothing_factor == 0.1
    )
