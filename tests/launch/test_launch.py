"""The launchers, with stand-ins for the commands of the clusters that note what they are called with."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
TRAIN = ["--config", "configs/phase1.py", "--config.train.tokens=5 and $HOME"]


@pytest.fixture
def shell(tmp_path):
    """Runs a launcher; every stand-in appends its arguments, a line each, to `calls` and does what it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def run(script, *arguments, stubs=None, **variables):
        for name, text in (stubs or {}).items():
            path = folder / name
            path.write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@" >>{tmp_path}/calls\n{text}\n')
            path.chmod(0o755)
        done = subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path), **variables},
            timeout=60,
            check=False,
        )
        calls = tmp_path / "calls"
        done.calls = calls.read_text() if calls.exists() else ""
        return done

    return run


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_shellcheck_has_nothing_to_say(script):
    program = Path(sys.executable).with_name("shellcheck")
    if not program.exists():
        pytest.skip("shellcheck is not installed; it comes with the extra test")
    done = subprocess.run([program, LAUNCH / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- restart.sh ---


def job(tmp_path, *runs):
    """A program that ends its runs with the given (status, newest step then), one after the other."""
    (tmp_path / "runs").write_text("".join(f"{status} {step}\n" for status, step in runs))
    (tmp_path / "step").write_text("-1\n")
    program = tmp_path / "job"
    program.write_text(
        f"""#!/bin/bash
if [ "${{@: -1}}" = --newest_step ]; then cat {tmp_path}/step; exit; fi
read -r status step <{tmp_path}/runs
sed -i 1d {tmp_path}/runs
echo "$step" >{tmp_path}/step
exit "$status"
"""
    )
    program.chmod(0o755)
    return program


def test_status_75_is_started_again(shell, tmp_path):
    done = shell("restart.sh", job(tmp_path, (75, 4), (75, 9), (3, 9), (0, 9)), "--config", "a.py")
    assert done.returncode == 3
    assert (tmp_path / "runs").read_text() == "0 9\n"


@pytest.mark.parametrize(
    ("steps", "restarts"), [((-1,) * 5, 2), ((4, 4, 9, 9, 9, 12), 4), ((9, 8, 8, 8), 2)]
)
def test_restarts_without_a_new_checkpoint_are_bounded(shell, tmp_path, steps, restarts):
    """Also those of a run that goes back, whose newest step falls."""
    program = job(tmp_path, *((75, step) for step in steps))
    done = shell("restart.sh", program, MAX_RESTARTS="2")
    assert done.returncode == 75
    assert "gave up after 2 restarts without a new checkpoint" in done.stderr
    assert done.stdout.count("started again") == restarts


def signalled(tmp_path, **variables):
    """Ends restart.sh by SIGTERM as soon as its command runs; returns its status and what the command noted."""
    log, end = tmp_path / "log", time.monotonic() + 20
    inner = (
        f"[ $0 != --newest_step ] || exit; trap 'sleep 0.2; echo saved >>{log}; exit 75' TERM;"
        f" echo up >>{log}; sleep 30 & wait"
    )
    arguments = ["bash", LAUNCH / "restart.sh", "bash", "-c", inner]
    with subprocess.Popen(
        arguments, env={**os.environ, **variables}, start_new_session=True
    ) as job:
        try:
            while not log.exists() and time.monotonic() < end:
                time.sleep(0.05)
            job.terminate()
            return job.wait(20), log.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(
                    job.pid, signal.SIGKILL
                )  # what was left running, the command's `sleep` too


def test_a_signal_reaches_the_command_and_is_the_end(tmp_path):
    assert signalled(tmp_path) == (75, "up\nsaved\n")


def test_a_signal_before_the_command_is_known_reaches_it(tmp_path):
    """bash is made to pause before each of restart.sh's own commands, so between start and `child=$!` too."""
    slow = tmp_path / "slow.sh"
    slow.write_text("case $0 in */restart.sh) trap 'sleep 0.15' DEBUG ;; esac\n")
    assert signalled(tmp_path, BASH_ENV=str(slow)) == (75, "up\nsaved\n")


# --- local.py ---


def test_local_looks_where_training_does(tmp_path, monkeypatch):
    """For a checkpoint that is newer, whether the run folder is named, in the config, or its default."""
    spec = importlib.util.spec_from_file_location("local", LAUNCH / "local.py")
    local = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(local)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/phase1/checkpoints/7").mkdir(parents=True)
    config = ["--config", str(LAUNCH.parent / "configs/phase1.py")]
    assert local.newest_checkpoint(config) == 7
    assert local.newest_checkpoint([*config, "--workdir", "runs/phase1"]) == 7
    assert local.newest_checkpoint([*config, "--config.workdir=runs/other"]) == -1
    assert local.newest_checkpoint([*config, "--config.no_such_field=1"]) == -1


# --- tpu_pod.sh ---

PLACE = {"NAME": "pod", "ZONE": "us-x1"}


def test_pod_training_starts_on_all_workers(shell):
    done = shell("tpu_pod.sh", "train", *TRAIN, stubs={"gcloud": ""}, **PLACE)
    assert done.returncode == 0, done.stderr
    start = "gcloud\ncompute\ntpus\ntpu-vm\nssh\npod\n--zone\nus-x1\n--worker=all\n--command\n"
    assert done.calls.startswith(start)
    assert "JAX_COMPILATION_CACHE_DIR=$HOME/jax_cache\n" in done.calls  # expanded on the VM
    assert "LIBTPU_INIT_ARGS" not in done.calls


def test_what_is_sent_to_a_worker_runs_there(shell, tmp_path):
    """The text of `--command`, run as a VM's shell would; training gets its arguments unharmed."""
    home = tmp_path / "vm"
    python = home / "mmbert_jax/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$JAX_PLATFORMS" "$LIBTPU_INIT_ARGS" "$@"\n')
    python.chmod(0o755)
    shutil.copytree(LAUNCH, home / "mmbert_jax/launch")
    gcloud = f'cd {home} && HOME={home} bash -c "${{@: -1}}"'
    log = home / "mmbert_jax/train.log"
    done = shell(
        "tpu_pod.sh",
        "train",
        *TRAIN,
        stubs={"gcloud": gcloud},
        LIBTPU_INIT_ARGS="--a=1 --b=2",
        **PLACE,
    )
    assert done.returncode == 0, done.stderr
    expected = ["tpu", "--a=1 --b=2", "-m", "mmbert_jax.train", *TRAIN]
    end = time.monotonic() + 20
    while time.monotonic() < end and not (log.exists() and log.read_text().count("\n") == 7):
        time.sleep(0.05)
    assert log.read_text().splitlines() == expected
    assert int((home / "mmbert_jax/train.pid").read_text()) > 1


def test_pod_is_waited_for(shell, tmp_path):
    states = f"""case $* in *describe*)
s=$(head -n 1 {tmp_path}/states); sed -i 1d {tmp_path}/states; echo $s;; esac"""
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\nnever asked\n")
    variables = {"ACCELERATOR": "v5p-1024", "SPOT": "1", "POLL_SECONDS": "0", **PLACE}
    done = shell("tpu_pod.sh", "create", stubs={"gcloud": states}, **variables)
    assert done.returncode == 0, done.stderr
    assert "--accelerator-type\nv5p-1024\n--runtime-version\nv2-alpha-tpuv5\n--spot\n" in done.calls
    assert (tmp_path / "states").read_text() == "never asked\n"
    (tmp_path / "states").write_text("FAILED\n")
    done = shell("tpu_pod.sh", "create", stubs={"gcloud": states}, **variables)
    assert done.returncode == 1
    assert "error: no slice was given" in done.stderr


def test_dry_run_runs_nothing(shell):
    for action in (["create"], ["install"], ["train", *TRAIN], ["log"], ["stop"], ["delete"]):
        variables = {"ACCELERATOR": "v5litepod-256", "DRY_RUN": "1", **PLACE}
        done = shell("tpu_pod.sh", *action, stubs={"gcloud": "", "git": ""}, **variables)
        assert done.returncode == 0, done.stderr
        assert "gcloud compute tpus" in done.stdout
        assert done.calls == ""


def test_pod_wants_a_name_and_a_known_action(shell):
    assert "set NAME" in shell("tpu_pod.sh", "train", *TRAIN).stderr
    done = shell("tpu_pod.sh", "fly", **PLACE)
    assert done.returncode == 2
    assert "bash launch/tpu_pod.sh create" in done.stderr


# --- slurm.sh ---


@pytest.mark.parametrize(
    ("runs", "state", "restarts", "requeued"),
    [
        ([(75, 4)], "RUNNING", "3", True),
        ([(75, 4)], "COMPLETING", "3", False),  # cancelled, or queued again by Slurm
        ([(75, 4)], "RUNNING", "100", False),
        ([(1, 4)], "RUNNING", "0", False),
        ([(0, 4)], "RUNNING", "0", False),
        ([(75, -1), (75, -1), (75, -1)], "RUNNING", "0", False),  # gets nowhere
        ([(75, -1), (75, 8)], "RUNNING", "0", True),
        ([(75, -1), (0, 8)], "RUNNING", "0", False),
    ],
)
def test_slurm_queues_a_job_again_that_got_further(
    shell, tmp_path, runs, state, restarts, requeued
):
    program = job(tmp_path, *runs)
    srun = 'while [[ $1 == --* ]]; do shift; done; "$@"'
    stubs = {"srun": srun, "squeue": f"echo {state}", "scontrol": ""}
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": restarts,
        "SLURM_CPUS_PER_TASK": "6",
        "PYTHON": str(program),
    }
    done = shell("slurm.sh", *TRAIN, stubs=stubs, **variables)
    assert done.returncode == runs[-1][0]
    assert (tmp_path / "runs").read_text() == ""
    assert ("scontrol\nrequeue\n7\n" in done.calls) == requeued
    arguments = "\n".join([str(program), "-m", "mmbert_jax.train", *TRAIN])
    assert f"--cpus-per-task=6\n--cpu-bind=cores\n{arguments}\n" in done.calls


def test_slurm_gives_jax_the_memory_that_the_plan_counts_on(shell):
    done = shell(
        "slurm.sh", *TRAIN, stubs={"squeue": "", "srun": 'printenv | grep -E "^(XLA|JAX|NCCL)"'}
    )
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95\n" in done.stdout
    assert "JAX_PLATFORMS=cuda\n" in done.stdout


def test_slurm_dry_run(shell):
    done = shell("slurm.sh", *TRAIN, stubs={"srun": ""}, DRY_RUN="1")
    assert done.stdout.startswith("srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task=8 ")
    assert r"--config.train.tokens=5\ and\ \$HOME" in done.stdout
    assert done.calls == ""


# --- gke_jobset.yaml ---


def test_jobset_hangs_together():
    """Fields by the names of jobset.x-k8s.io/v1alpha2 and batch/v1, and the numbers that must agree."""
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    assert set(spec) == {"network", "failurePolicy", "replicatedJobs"}
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"  # a podFailurePolicy takes no other
    assert pod["terminationGracePeriodSeconds"] >= 120

    chips = 1
    for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(n)
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts

    codes, disrupted = job["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["containerName"] == container["name"]
    assert codes["onExitCodes"]["values"] == sorted(codes["onExitCodes"]["values"])
    assert 75 in codes["onExitCodes"]["values"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    actions = [rule["action"] for rule in spec["failurePolicy"]["rules"]]
    assert actions == ["FailJobSet", "RestartJobSetAndIgnoreMaxRestarts"]

    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["command"][2].startswith("exec .venv/bin/python -m mmbert_jax.train")
