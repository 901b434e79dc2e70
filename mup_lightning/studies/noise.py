"""A gradient noise scale that runs have measured, against a batch. Imports no torch."""

from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.files import read_json
from mup_lightning.studies.transfer.losses import LOSS, numbers, read_table


def against(path: Path, batch: int) -> tuple[float, str]:
    """A batch, in tokens, over the noise scale that was measured in `path` (0: unknown), and the same in words.

    `path` is the folder of a run or its result.json; or of a sweep or its results.csv, where the run with the lowest
    loss counts. Raises UserError where there is neither, or it cannot be read.
    """
    files = (path / "result.json", path / "results.csv") if path.is_dir() else (path,)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"{path} has no result.json and no results.csv; expected a finished run or a sweep")
    known: tuple[float, float | None] | None = None
    if file.suffix == ".json":
        result = read_json(file, "the result of a run")
        if not isinstance(result, dict):
            raise UserError(f"{file} is no object; expected the result of a run")
        known = (result["noise_scale"], result.get("validation_loss")) if result.get("noise_scale") else None
    elif "noise_scale" in (table := read_table(file, ["loss"])):
        found = [numbers(table, name, text, empty=True) for name, text in (("noise_scale", "tokens"), ("loss", LOSS))]
        runs = [(tokens, loss) for tokens, loss in zip(*found, strict=True) if tokens > 0 and loss == loss]
        known = min(runs, key=lambda run: run[1], default=None)
    if known is None:
        return 0.0, f"{path} has no gradient noise scale: not measured, or too large to be told from infinity"
    tokens, loss = known
    at = "" if loss is None else f" at loss {loss:.3f}"
    said = f"the batch of {batch:,} tokens is {batch / tokens:.2g} times the gradient noise scale of {path}"
    beyond = (
        ": beyond it a larger batch saves hardly any steps, and no rule for the learning rate over the batch holds; "
        "the noise scale grows as the loss falls, so a run that gets further may bear more"
    )
    return batch / tokens, f"{said}, {tokens:,.0f} tokens{at}" + beyond * (batch > tokens)
