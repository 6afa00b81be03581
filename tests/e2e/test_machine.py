"""`fedhpc doctor` and `fedhpc plan` as users start them."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.command import SMOKE, fedhpc, finish, start


def test_doctor_alone_and_under_torchrun(tmp_path: Path) -> None:
    code, out, err = fedhpc(tmp_path, "doctor", "--data", str(tmp_path))
    assert code == 0, out + err
    for part in ("packages", "HDF5", "gloo adds exactly over 2 ranks", "GB/s", "slow ranks", "clocks", "seen by all 2"):
        assert part in out, out
    command = ("--standalone", "--nproc-per-node", "2", "-m", "fedhpc.cli", "doctor", "--data", "nowhere.h5")
    code, out, err = finish(start(tmp_path, *command, module="torch.distributed.run"))
    assert code != 0, err
    assert out.count("gloo adds exactly over 2 ranks") == 1
    assert "nowhere.h5 does not exist" in out
    assert "cannot see nowhere.h5" in out


def test_plan(tmp_path: Path) -> None:
    config = str(SMOKE / "fedavg.yaml")
    code, out, err = fedhpc(tmp_path, "plan", config, "--ranks", "2,64", "--latency-us", "2", "--bandwidth-gbit", "100")
    assert code == 0, err
    for part in ("32 x 2", "5 clients train, 4 a round", "Between nodes: 2 us and 12.50 GB/s", "not pay"):
        assert part in out, out
    code, _, err = fedhpc(tmp_path, "plan", config, "--ranks", "many")
    assert code == 2
    assert "write numbers such as 8,64,512" in err
    assert "Traceback" not in err
