"""Sweeps on a Ray cluster of two nodes, each a set of processes of its own; one node is killed on the way."""

import os
import threading
import time

import pandas as pd
import pytest
import yaml

from fairlm_utils import files, identity, params
from fairlm_utils.__main__ import main
from fairlm_utils.analysis.results import read_token_table
from fairlm_utils.experiment import sweep

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from tests.test_training import same_run  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    cluster = _started()
    yield cluster
    cluster.shutdown()


def _started(tries: int = 3) -> Cluster:
    """A cluster of one node; on a loaded machine Ray's own start may time out, which it reports by SystemExit."""
    try:
        return Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    except SystemExit:
        if tries == 1:
            raise
        time.sleep(10)
        return _started(tries - 1)


def test_a_killed_node_changes_no_result(cluster, miniature, tmp_path):
    lost = cluster.add_node(num_cpus=1)
    values = miniature(steps=400, window_steps=100, checkpoint_steps=50, runs_dir=str(tmp_path / "ray")).model_dump()
    values |= {"weight_decay": [0.0, 0.5, 1.0]}
    points = params.expand(values)
    outcomes = []
    driver = threading.Thread(target=lambda: outcomes.extend(sweep.sweep(points, ray_address=cluster.address)))
    driver.start()
    _wait_for_two_runs_at_work(points)
    cluster.remove_node(lost, allow_graceful=False)
    driver.join(timeout=300)
    assert sorted(o.run_id for o in outcomes) == sorted(p.run_id() for p in points)
    assert [o.status for o in outcomes] == ["finished"] * 3, outcomes
    here = params.expand(values | {"runs_dir": str(tmp_path / "local")})
    assert {o.status for o in sweep.sweep(here)} == {"finished"}
    for on_ray, local in zip(map(identity.run_dir, points), map(identity.run_dir, here), strict=True):
        assert same_run(on_ray, local)
        pd.testing.assert_frame_equal(read_token_table(on_ray, "held-out"), read_token_table(local, "held-out"))


def _wait_for_two_runs_at_work(points, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        started = [d for d in map(identity.run_dir, points) if (d / "params.json").exists()]
        at_work = [d for d in started if not (d / "provenance.json").exists()]
        if len(at_work) == 2 and all(list(d.glob("checkpoints/checkpoint-*")) for d in at_work):
            return
        time.sleep(0.05)
    pytest.fail("two nodes never worked at the same time")


def test_a_run_larger_than_any_node_is_refused_at_once(cluster, miniature):
    with pytest.raises(files.RunError, match="lower n_threads"):
        sweep.sweep([miniature(n_threads=64, experiment="large")], ray_address=cluster.address)
    with pytest.raises(files.RunError, match="gpus-per-run"):
        sweep.sweep([miniature(seed=77, experiment="large")], ray_address=cluster.address, gpus_per_run=0.5)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999", "nowhere"])
def test_an_address_where_no_cluster_answers(address, miniature, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(miniature(seed=78).model_dump()))
    assert main(["sweep", str(path), "--ray-address", address]) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err
