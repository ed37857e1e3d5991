"""The command ``doctor``: output and exit codes."""

import json
import os
import re

from inpaint_encode.stores import storage


def test_command_without_problems_exits_with_0(s3, shell):
    prefix = s3.uri("doctor-command")
    storage.write(f"{prefix}/images/a.png", b"1")
    done = shell("doctor", f"{prefix}/images", "--output", f"{prefix}/out", "--no-ray")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"no problems, \d+ warnings?", lines[-1])
    assert any(line.startswith(f"ok      {prefix}/out: conditional writes work") for line in lines)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr


def test_command_with_a_problem_exits_with_1(tmp_path, shell):
    done = shell("doctor", tmp_path / "none", "--no-ray")
    assert done.returncode == 1
    assert f"problem {tmp_path}/none: cannot be read (No such file or directory)" in done.stdout
    assert re.search(r"error: 1 problem and \d+ warnings? found; see the advice above", done.stderr)


def test_config_file_of_a_job_gives_the_output(tmp_path, shell):
    (tmp_path / "job.toml").write_text(f"output = {json.dumps(str(tmp_path / 'out'))}\nvae = 'x'\n")
    done = shell("doctor", "--config", tmp_path / "job.toml", "--no-ray")
    assert f"{tmp_path}/out: conditional writes work" in done.stdout
