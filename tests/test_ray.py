"""Sweeps on a Ray cluster of two nodes, each a set of processes of its own; one node is killed on the way."""

import contextlib
import os
import threading
import time

import psutil
import pytest
import yaml

from fairlm_utils import files, identity
from fairlm_utils.__main__ import main
from fairlm_utils.experiment import runs, sweep

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

#: An agent's port that is free, as further nodes have it; Ray takes free ones for the rest.
HEAD = {"num_cpus": 1, "include_dashboard": False, "dashboard_agent_listen_port": None}


@pytest.fixture(scope="module")
def cluster():
    cluster = _started()
    yield cluster
    cluster.shutdown()


def _started(tries: int = 3) -> Cluster:
    """A cluster of one node; on a loaded machine Ray's own start may time out, which it reports by SystemExit."""
    try:
        return Cluster(initialize_head=True, head_node_args=HEAD)
    except SystemExit:
        if tries == 1:
            raise
        time.sleep(10)
        return _started(tries - 1)


def test_a_killed_node_changes_no_result(cluster, miniature, tmp_path):
    lost = cluster.add_node(num_cpus=1)
    given = dict(steps=400, window_steps=100, checkpoint_steps=25)
    points = [miniature(weight_decay=w, runs_dir=str(tmp_path / "ray"), **given) for w in (0.0, 1.0)]
    outcomes = []
    driver = threading.Thread(target=lambda: outcomes.extend(sweep.sweep(points, ray_address=cluster.address)))
    driver.start()
    moved = _at_work(lost, points)
    cluster.remove_node(lost, allow_graceful=False)
    driver.join(timeout=300)
    assert {o.run_id: o.status for o in outcomes} == {p.run_id(): "finished" for p in points}, outcomes
    assert "continuing from step" in (moved / sweep.LOG).read_text(encoding="utf-8")
    for p in points:
        on_ray, local = identity.run_dir(p), runs.evaluate(p.model_copy(update={"runs_dir": str(tmp_path / "local")}))
        assert files.digests(on_ray, files.RESULT_FILES) == files.digests(local, files.RESULT_FILES)


def _at_work(node, points, seconds=120):
    """The folder of the run that a process of a node works on, once it has a checkpoint."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    locks = {str(identity.run_dir(p) / ".lock"): identity.run_dir(p) for p in points}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for process in raylet.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                for file in process.open_files():
                    run = locks.get(file.path)
                    if run and list(run.glob("checkpoints/*/complete.json")):
                        return run
        time.sleep(0.05)
    pytest.fail("the node never worked on a run")


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
