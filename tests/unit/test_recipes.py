"""The files that hold a job's options are taken as they are, whole, by the command line that reads them."""

from pathlib import Path

import pytest

from inpaint_encode.cli.arguments import apply_config
from inpaint_encode.cli.commands import app
from inpaint_encode.settings import Workers, label_selector

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs/recipes").glob("*.toml"))
JOBS = sorted((ROOT / "cluster").rglob("job.toml"))
REST = ["--images", "s3://in/images", "--masks", "s3://in/masks", "--vae", "some/vae", "--output", "s3://out"]


def job_of(*arguments):
    tokens, _ = apply_config(["encode", *map(str, arguments)])
    _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    return bound.arguments["job"]


@pytest.fixture(autouse=True)
def no_config_after():
    yield
    app.config = ()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_lacks_only_what_is_to_be_encoded(recipe):
    job = job_of("--config", recipe, *REST)
    assert job != job_of_flags(), f"{recipe} says nothing that is not the default"
    assert job.workers.max_workers > 0


def job_of_flags():
    app.config = ()
    return job_of(*REST)


@pytest.mark.parametrize("config", JOBS, ids=lambda path: path.parent.name)
def test_a_cluster_s_job_lacks_nothing(config):
    job = job_of("--config", config)
    assert job.workers.max_workers > 0, "a cluster that starts nodes on demand must be told how many"
    assert float(job.workers.gpus_per_worker) > 0, "auto sees only what is there when the job starts"


def test_there_are_recipes_and_jobs():
    assert len(RECIPES) >= 5
    assert len(JOBS) == 2


def test_labels_are_told_apart():
    assert label_selector("") is None
    assert label_selector("pool=gpu") == {"pool": "gpu"}
    labels = Workers(encode_on="ray.io/accelerator-type=in(L4, A10G),market=!spot, a.b/c-d=!in(x,y)").encode_on
    expected = {"ray.io/accelerator-type": "in(L4, A10G)", "market": "!spot", "a.b/c-d": "!in(x,y)"}
    assert label_selector(labels) == expected
