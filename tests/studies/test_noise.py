"""A planned batch against a noise scale that runs have measured."""

import json

import pytest

from mup_lightning.cli.main import main

HEAD = "loss,seed,noise_scale\n"
BEYOND = "no rule for the learning rate over the batch holds"
FILES = {
    "run/result.json": json.dumps({"finished": True, "validation_loss": 3.25, "noise_scale": 1000.0}),
    "old/result.json": json.dumps({"finished": True, "validation_loss": 3.25}),
    "list/result.json": "[]",
    "sweep/results.csv": HEAD + "3.5,0,4000\n3.0,1,8000\n2.5,2,\n,3,500\n",
    "published/results.csv": "loss,seed\n3.5,0\n",
    "damaged/results.csv": HEAD + "3.5,0,much\n",
    "empty/notes.txt": "",
}


@pytest.mark.parametrize(
    ("place", "batch", "said", "beyond"),
    [
        ("run", 8, "the batch of 2,048 tokens is 2 times the gradient noise scale of PLACE, 1,000 tokens at loss 3.250",
         True),
        ("run/result.json", 2, "the batch of 512 tokens is 0.51 times the gradient noise scale of PLACE", False),
        ("sweep", 64, "the batch of 16,384 tokens is 2 times the gradient noise scale of PLACE, 8,000 tokens at loss 3",
         True),
        ("sweep/results.csv", 8, "the batch of 2,048 tokens is 0.26 times", False),
        ("old", 8, "PLACE has no gradient noise scale", False),
        ("published", 8, "PLACE has no gradient noise scale", False),
        ("damaged", 8, "error: PLACE/results.csv, row 2: noise_scale is 'much'; expected tokens", None),
        ("list", 8, "error: PLACE/result.json is no object; expected the result of a run", None),
        ("empty", 8, "error: PLACE has no result.json and no results.csv; expected a finished run or a sweep", None),
        ("none", 8, "error: PLACE has no result.json and no results.csv", None),
    ],
)  # fmt: skip
def test_plan_compares_the_batch(tmp_path, capsys, place, batch, said, beyond):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    place = str(tmp_path / place)
    options = ["--model.context=256", f"--data.batch_size={batch}", "--gpus=1", "--noise-scale", place, "--json"]
    assert main(["plan", *options]) == (1 if beyond is None else 0)
    out, err = capsys.readouterr()
    last = err if beyond is None else json.loads(out)["notes"][-1]
    assert said.replace("PLACE", place) in last
    assert (BEYOND in last) == bool(beyond)
